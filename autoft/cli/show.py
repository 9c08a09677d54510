"""An estimate and a result for people: what, how much memory, how long."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autoft.cli import event_words
from autoft.planner.estimate import Estimate, ServingEstimate
from autoft.planner.estimator.target import several
from autoft.planner.search import words
from autoft.planner.search.candidates import describe, describe_base
from autoft.render import facts
from autoft.trainer.adapters import kind_of
from autoft.trainer.recipe import Recipe
from autoft.trainer.report import wording
from autoft.trainer.result import Evaluation, RunResult, Sample
from autoft.trainer.storage.event_log import event_of
from autoft.units import KIB, count, duration, energy, size

if TYPE_CHECKING:
    from autoft.planner.plan.cases import Case
    from autoft.trainer.evaluation.judge import Judgement
    from autoft.trainer.evaluation.tasks import TaskScore, TaskScores

BAR_COLORS = ("blue", "cyan", "green", "magenta", "yellow", "red", "white")
SHOWN_EVENTS = 12  # of a run; result.json has them all
SIDE_BY_SIDE = 80  # columns, for three answers beside each other
SHOWN_PARTS = 12  # of a figure that is explained; --json has them all


def show_estimate(recipe: Recipe, estimate: Estimate, target: str, console: Console) -> None:
    """Memory and time of one recipe."""
    where = several(estimate.num_gpus, target)
    console.print(Text(f"{describe(recipe)}, {recipe.seq_len:,} tokens, on {where}", style="bold"))
    rows = [
        ("Memory", f"{words.of_usable(estimate)}: {words.closeness(estimate)}"),
        ("Trained", f"{count(estimate.trainable_params)} of {count(estimate.total_params)} weights"),
        ("Step", step_time(estimate)),
        ("Peaks", ", ".join(f"{phase.replace('_', ' ')} {size(peak)}" for phase, peak in estimate.phases.items())),
        *_beside(estimate),
        *_other_cards(estimate),
    ]
    console.print(facts(rows))
    console.print(memory_bar(estimate, console.width))
    console.print(_components(estimate))
    for assumption in estimate.assumptions:
        console.print(Text(f"Note: {assumption}", style="dim"))


def show_serving(recipe: Recipe, estimate: ServingEstimate, target: str, console: Console) -> None:
    """Memory to answer with a base and adapters."""
    prompts = f"{estimate.prompts} prompt{'s' * (estimate.prompts > 1)} x {estimate.context_tokens:,} tokens"
    console.print(Text(f"Serving {describe_base(recipe)}, {prompts}, on {target}", style="bold"))
    used = words.share(estimate.device_bytes, estimate.available_bytes)
    kind = kind_of(recipe)
    named = " ".join(word for word in (kind.title(recipe), kind.size(recipe)) if word)
    adapters = ("Adapters", f"{estimate.adapters} x {size(estimate.adapter_bytes)} ({named})")
    per_token = size(round(estimate.kv_cache_bytes_per_token))
    rows = [
        ("Memory", f"{used}: {words.closeness(estimate)}"),
        ("Base", size(estimate.base_bytes)),
        *([adapters] if estimate.adapters else []),
        ("KV cache", f"{size(estimate.kv_cache_bytes)} ({per_token} a token)"),
        ("Peaks", ", ".join(f"{phase} {size(peak)}" for phase, peak in estimate.phases.items())),
        *_other_cards(estimate),
    ]
    console.print(facts(rows))
    console.print(memory_bar(estimate, console.width))
    console.print(_components(estimate))
    for assumption in estimate.assumptions:
        console.print(Text(f"Note: {assumption}", style="dim"))


def show_explanation(figures: Iterable[dict[str, Any]], console: Console) -> None:
    """Each figure with the parts that it is the sum of, the largest of many."""
    console.print(Text("How each figure comes about", style="bold"))
    for figure in figures:
        name = figure["figure"].replace("_", " ").replace(".", ", ")
        where = f" ({figure['where']})" if figure["where"] else ""
        console.print(Text(f"{name}: {size(figure['bytes'])}", style="bold").append(where, style="dim not bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right", min_width=10, no_wrap=True)
        table.add_column(overflow="fold")
        shown, rest = figure["parts"][:SHOWN_PARTS], figure["parts"][SHOWN_PARTS:]
        for part in shown:
            source = f" [{part['source']}]" if part["source"] else ""
            table.add_row(_exact(part["bytes"]), Text(part["what"] + source))
        if rest:
            table.add_row(size(sum(part["bytes"] for part in rest)), Text(f"{len(rest)} smaller ones", style="dim"))
        console.print(table)


def show_cases(found: Iterable[tuple[Case, Recipe, Estimate]], console: Console) -> None:
    """One line a case."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("model", "recipe", "allocated", "reserved", "device", "fits"):
        table.add_column(name, justify="right" if name in ("allocated", "reserved", "device") else "left")
    for case, recipe, estimate in found:
        memory = (estimate.peak_allocated_bytes, estimate.peak_reserved_bytes, estimate.device_bytes)
        table.add_row(case.model, f"{describe(recipe)}, {recipe.seq_len} tokens", *map(size, memory), estimate.fits)
    console.print(table)


def show_result(result: RunResult, out: str, console: Console) -> None:
    """A finished run: before and after, predicted and measured, what to do next."""
    if result.sample is not None:
        sample = result.sample
        answers = Group(
            Text("Message ", style="bold").append(sample.prompt, style="not bold"),
            Text("Before  ", style="bold").append(_clipped(sample.before), style="not bold"),
            Text("After   ", style="bold").append(sample.after, style="not bold"),
            Text("Wanted  ", style="bold").append(sample.expected, style="not bold"),
        )
        console.print(Panel(answers, title="One held-out message", title_align="left"))
    console.print(scores(result.before, result.after))
    console.print(facts(_measured_facts(result)))
    for sentence in _happened(result):
        console.print(Text(sentence))
    console.print(Text("Next", style="bold"))
    recipe = result.job.recipe
    exports = (f"autoft export {out} --to ollama -o my-model", "or gguf, vllm")
    for command, what in (
        (f"autoft chat {out}", "talk to it"),
        (f"autoft eval {out}", "how sure the figures are"),
        *([exports] if recipe.method == "full" or kind_of(recipe).on_layers else []),
        ("autoft run MODEL --data FILE", "your own model and data"),
    ):
        console.print(Text(f"  {command}", style="cyan").append(f"   {what}", style="default"))


def memory_bar(estimate: Estimate | ServingEstimate, width: int) -> Text:
    """One line: each component in proportion to what is usable, then what stays free."""
    room = max(estimate.available_bytes, estimate.device_bytes)
    cells = max(10, min(60, width - 4))
    bar = Text("  ")
    used = 0
    for color, (_, part) in zip(itertools.cycle(BAR_COLORS), estimate.components.items(), strict=False):
        length = round((used + part) / room * cells) - round(used / room * cells)
        used += part
        bar.append("█" * length, style=color)
    taken = round(estimate.device_bytes / room * cells)
    bar.append("▒" * max(0, taken - round(used / room * cells)), style="dim")
    bar.append("·" * max(0, cells - taken), style="dim")
    return bar


def _beside(estimate: Estimate) -> list[tuple[str, str]]:
    """RAM and disk by phase."""
    places = (("Host RAM", estimate.host_bytes), ("Disk", estimate.disk_bytes))
    return [(name, ", ".join(f"{phase} {size(n)}" for phase, n in by.items())) for name, by in places if by]


def _other_cards(estimate: Estimate | ServingEstimate) -> list[tuple[str, str]]:
    """The least memory that would do, of cards with the same kernels."""
    by = estimate.fits_by_gib
    if not by:
        return []
    least = next((gib for gib, fits in by.items() if fits == "yes"), None)
    tight = next((gib for gib, fits in by.items() if fits == "tight"), None)
    needs = f"more than {max(by, key=int)} GiB" if least is None else f"{least} GiB"
    borderline = "" if tight is None else f" ({tight} GiB is borderline)"
    return [("Similar cards", f"need {needs}{borderline}")]


def step_time(estimate: Estimate) -> str:
    """A step's range, and the tokens of a second in its middle."""
    span = estimate.step_time_s
    return f"{duration(span.lower)} to {duration(span.upper)}, about {estimate.tokens_per_s:,.0f} tokens/s"


def _components(estimate: Estimate | ServingEstimate) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for color, (name, part) in zip(itertools.cycle(BAR_COLORS), estimate.components.items(), strict=False):
        label = name.replace("_", " ").replace("kv ", "KV ")
        table.add_row(Text("  █", style=color), Text(label), Text(size(part)))
    return table


CHANGE_NOTE = "change: from before to after, in 95% of draws of other rows like these (bootstrap)"


def show_judgement(judgement: Judgement, console: Console) -> None:
    """A run judged again: its samples side by side, then the figures."""
    for sample in judgement.samples:
        console.print(_side_by_side(sample, console.width))
    console.print(_judged(judgement))
    if judgement.changes:
        console.print(CHANGE_NOTE, style="dim")


def _judged(judgement: Judgement) -> Table:
    """A line a figure, a column a model; the change from the base to the trained model as an interval."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    others = [variant.name for variant in judgement.variants]
    change = ["change (95%)"] if judgement.changes else []
    table.add_column(f"{judgement.after.rows} held-out rows")
    for name in ("before", "after", *change, *others):
        table.add_column(name, justify="right")
    for score, was, now in wording.scores(judgement.before, judgement.after):
        interval = judgement.changes.get(score.name)
        row = [score.label, score.text(was), score.text(now)]
        row += [score.interval(interval.lower, interval.upper) if interval else ""] if change else []
        row += [score.text(getattr(variant.evaluation, score.name)) for variant in judgement.variants]
        table.add_row(*row)
    if judgement.general is not None:
        general, loss = judgement.general, wording.SCORES[0]
        row = ["general prompts, loss", loss.text(general.before), loss.text(general.after)]
        row += [loss.interval(general.change.lower, general.change.upper)] if change else []
        table.add_row(*row)
    return table


def show_tasks(judged: TaskScores, console: Console) -> None:
    """A line a figure of the tasks asked for, base and trained model side by side."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in (f"lm-eval {judged.lm_eval}", "metric", "rows", "before", "after"):
        table.add_column(name, justify="right" if name in ("rows", "before", "after") else "left")
    for score in judged.scores:
        if score.task in judged.asked_for:
            figures = (_with_error(score.before, score.before_stderr), _with_error(score.after, score.after_stderr))
            table.add_row(score.task, _metric(score), f"{score.rows or ''}", *figures)
    console.print(table)


def _metric(score: TaskScore) -> str:
    return score.metric if score.higher_is_better is not False else f"{score.metric} (lower is better)"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def scores(before: Evaluation, after: Evaluation) -> Table:
    """Every figure that one of them has."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in (f"{after.rows} held-out rows", "before", "after"):
        table.add_column(name, justify="left" if "rows" in name else "right")
    for score, was, now in wording.scores(before, after):
        table.add_row(score.label, score.text(was), score.text(now))
    return table


def _happened(result: RunResult) -> list[str]:
    """What was out of the ordinary on the way, and which weights were kept."""
    events = [event for event in map(event_of, result.events) if event is not None]
    lines = [line for event in events for line in event_words.lines(event)]
    if len(lines) > SHOWN_EVENTS:
        lines = [*lines[:SHOWN_EVENTS], f"and {len(lines) - SHOWN_EVENTS} more, all in result.json"]
    if result.best_step is not None:
        lines.append(f"Kept: the weights of step {result.best_step:,}, the best by {result.job.metric}")
    return lines


def _side_by_side(sample: Sample, width: int) -> Panel:
    """The message, and under it the answers: beside each other where there is room, else below each other."""
    message = Text("Message ", style="bold").append(_clipped(sample.prompt), style="not bold")
    answers = (("Before", _clipped(sample.before)), ("After", _clipped(sample.after)), ("Wanted", sample.expected))
    if width < SIDE_BY_SIDE:
        below = (Text(f"{name:<7} ", style="bold").append(text, style="not bold") for name, text in answers)
        return Panel(Group(message, *below))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for name, _ in answers:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(text) for _, text in answers))
    return Panel(Group(message, table))


def _measured_facts(result: RunResult) -> list[tuple[str, str]]:
    measured, predicted = result.measured, result.predicted
    memory, step = size(measured.peak_bytes), duration(measured.step_time_s)
    if predicted is not None:
        memory += f", predicted {size(predicted.peak_bytes)} ({predicted.method})"
        step += f", predicted {duration(predicted.step_time_lower_s)} to {duration(predicted.step_time_upper_s)}"
    return [
        ("Memory", memory),
        ("Step", step),
        ("Speed", f"{measured.tokens_per_s:,.0f} tokens/s, of them {measured.trained_tokens_per_s:,.0f} trained"),
        ("Trained", f"{count(result.trainable_params)} of {count(result.total_params)} weights"),
        ("Time", ", ".join(f"{name.replace('_', ' ')} {duration(s)}" for name, s in result.seconds.items())),
        *([] if result.energy_kwh is None else [("Energy", energy(result.energy_kwh))]),
    ]


def _exact(num_bytes: int) -> str:
    return size(num_bytes) if num_bytes >= KIB else f"{num_bytes} bytes"


def _clipped(text: str, limit: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}..."
