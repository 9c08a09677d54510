"""A plan for people: in one screen what is trained, its memory and time, and what decided it; the rest on demand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft.cli.show import BAR_COLORS, memory_bar, step_time
from autoft.cli.show_correction import show_correction
from autoft.errors import harmless
from autoft.planner.alternative import Alternative
from autoft.planner.plan.record import Plan
from autoft.planner.search import words
from autoft.planner.search.candidates import describe
from autoft.render import facts
from autoft.trainer.adapters import kind_of
from autoft.trainer.recipe import Recipe
from autoft.units import count, duration, energy, size

DECISIVE = 3  # reasons on the screen
# The settings whose reasons come first: those that decide whether it fits, then how long it takes and how it learns
DECIDING = (
    "num_gpus",
    "streamed_layers",
    "method",
    "gradient_checkpointing",
    "optimizer",
    "adapter",
    "init",
    "accumulation",
    "learning_rate",
)
NEAREST = 3  # alternatives on the screen
LEAST_SHOWN = 0.01  # of the run's memory, for a part to be named beside the bar


def show_plan(plan: Plan, console: Console) -> None:
    """The plan in one screen: the choice, its memory and time, what decided, and what else there was."""
    job = plan.job
    console.print(Text(f"{job.model} on {plan.place}", style="bold"))
    console.print(facts([("Plan", describe(job.recipe)), *_job_facts(plan)]))
    console.print(memory_bar(plan.estimate, console.width))
    for line in _legend(plan, console.width):
        console.print(line)
    show_correction(plan, console)
    _show_list("Why", _decisive(plan), console)
    nearest = _nearest(plan.alternatives, job.recipe)
    _show_list("Instead", [f"{_name(a, plan)}: {words.instead(a, plan.estimate)}" for a in nearest], console)
    for note in plan.notes:
        console.print(Text(f"Note: {note}", style="dim"))


def show_details(plan: Plan, console: Console) -> None:
    """All that the screen leaves out: every reason, assumption and alternative, and what was not tried."""
    _show_list("Every reason", plan.reasons, console)
    _show_list("What the figures assume", plan.estimate.assumptions, console)
    _show_list("Not chosen", [f"{_name(a, plan)}: {a.reason}" for a in plan.alternatives], console)
    _show_list("Not tried", plan.pruned, console)


def _show_list(title: str, lines: Iterable[str], console: Console) -> None:
    """A heading and a line each; nothing where there are none."""
    table = Table.grid()
    table.add_column(width=4, no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row("  - ", Text(line))
    if table.row_count:
        console.print(Text(title, style="bold"))
        console.print(table)


def _decisive(plan: Plan) -> list[str]:
    """The reasons that decided, the most weighty first; of an older file, whose reasons have no keys, the first."""
    weight = {key: place for place, key in enumerate(DECIDING)}
    records = sorted(plan.reason_records, key=lambda reason: weight.get(reason.key, len(DECIDING)))
    # how much of the memory it takes stands above, and what is preferred was asked for
    deciding = [reason.text for reason in records if reason.key not in ("fit", "prefer")]
    return (deciding or list(plan.reasons))[:DECISIVE]


def _nearest(alternatives: tuple[Alternative, ...], chosen: Recipe) -> list[Alternative]:
    """The best of each kind of difference from the choice: what fits comes first, as in the plan."""
    by_kind: dict[tuple[bool, ...], Alternative] = {}
    for alternative in alternatives:
        by_kind.setdefault(_difference(alternative.recipe, chosen), alternative)
    return list(by_kind.values())[:NEAREST]


def _difference(recipe: Recipe, chosen: Recipe) -> tuple[bool, ...]:
    return (
        (recipe.method, recipe.quant_type) != (chosen.method, chosen.quant_type),
        recipe.gradient_checkpointing != chosen.gradient_checkpointing,
        recipe.checkpoint_every != chosen.checkpoint_every,
        recipe.offload_checkpoints != chosen.offload_checkpoints,
        recipe.streamed_layers != chosen.streamed_layers,
    )


def _name(alternative: Alternative, plan: Plan) -> str:
    name = describe(alternative.recipe)
    if alternative.num_gpus == plan.job.num_gpus:
        return name
    return f"{name}, {alternative.num_gpus} GPU{'s' * (alternative.num_gpus > 1)}"


def _legend(plan: Plan, width: int) -> Iterator[Text]:
    """What the colors of the bar are, the smallest parts aside, in as many lines as it takes."""
    estimate = plan.estimate
    entries: list[Text] = []
    for color, (name, part) in zip(itertools.cycle(BAR_COLORS), estimate.components.items(), strict=False):
        if part >= LEAST_SHOWN * estimate.device_bytes:
            entries.append(Text("█ ", style=color).append(f"{name.replace('_', ' ')} {size(part)}", style="default"))
    if estimate.device_bytes > estimate.peak_allocated_bytes:
        beside = "allocator cache + CUDA context" if plan.job.device == "cuda" else "other phases"
        entries.append(Text("▒ ", style="dim").append(beside, style="default"))
    entries.append(Text("· free", style="dim"))
    line = Text(" ")
    for entry in entries:
        if line.cell_len > 1 and line.cell_len + 2 + entry.cell_len > width:
            yield line
            line = Text(" ")
        line.append(" " if line.cell_len == 1 else "  ").append_text(entry)
    yield line


def _job_facts(plan: Plan) -> list[tuple[str, str]]:
    estimate, recipe = plan.estimate, plan.job.recipe
    trained = f"{count(estimate.trainable_params)} of {count(estimate.total_params)} weights"
    kind = kind_of(recipe)
    title = kind.title(recipe) if kind.title(recipe) != "LoRA" else ""  # as the line above has it
    named = ", ".join(word for word in (title, kind.size(recipe)) if word)
    adapter = ("Adapter", f"{named} {words.modules(recipe)}, {trained}")
    begun = plan.job.from_adapter
    return [
        ("Trained", trained) if recipe.method == "full" else adapter,
        *([] if begun is None else [("Continues", harmless(begun, one_line=True))]),
        ("Batch", f"{words.batch(plan.job)}, learning rate {words.rate(plan.job.learning_rate)}"),
        *_data(plan),
        ("Memory", f"{words.of_usable(estimate)}: {words.closeness(estimate)}"),
        ("Step", step_time(estimate)) if plan.steps is None else ("Time", _run_time(plan, plan.steps)),
    ]


def _data(plan: Plan) -> list[tuple[str, str]]:
    work = plan.workload
    if work is None:
        return []
    text = (
        f"{work.rows:,} rows, {work.mean_tokens:.0f} tokens on average, {work.trained_share:.0%} of them trained; "
        f"{work.heldout_rows} held out"
    )
    return [("Data", text)]


def _run_time(plan: Plan, steps: int) -> str:
    parts = [f"{steps} steps"]
    for span, unit in ((plan.run_time_s, duration), (plan.run_energy_kwh, energy)):
        if span is not None:
            parts.append(f"{unit(span.lower)} to {unit(span.upper)}")
    return ", ".join(parts)
