"""The questions of `autoft fit`, which `autoft plan` takes too: their options, and their answers for people."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from autoft import render
from autoft.cli import options, planning
from autoft.errors import OptionError

if TYPE_CHECKING:
    from rich.console import Console

    from autoft.planner.what_if.cards import CardFit
    from autoft.planner.what_if.context import Frame
    from autoft.planner.what_if.limits import Limit, Quantity
    from autoft.planner.what_if.models import ModelFit
    from autoft.trainer.recipe import Recipe

OWN_FAMILY = "*"
Line = tuple[bool, tuple[str, ...]]  # of a table: whether it fits, its cells
LEAST_COLUMNS = 5  # of a table that has a line a row

_HELP = {
    "max_seq": "Print the longest sequence that fits.",
    "max_rank": "Print the highest rank that fits.",
    "max_batch": "Print the largest micro-batch that fits.",
    "fit_all_gpus": "Print the best plan on every known GPU.",
    "model_sweep": "Print which models of a family fit (default: MODEL's own).",
}


def _questions(*flags: str, hidden: bool) -> tuple[options.Decorator, ...]:
    """The questions, in the order of _HELP, under these names."""
    made = []
    for flag, (name, text) in zip(flags, _HELP.items(), strict=True):
        kind: dict[str, Any] = {"is_flag": True}
        if name == "model_sweep":
            kind = {"is_flag": False, "flag_value": OWN_FAMILY, "metavar": "[FAMILY]"}
        made.append(click.option(flag, name, help=text, hidden=hidden, **kind))
    return tuple(made)


QUESTIONS = _questions("--longest", "--rank", "--batch", "--cards", "--family", hidden=False)
# As options of `autoft plan`, which they were before `autoft fit`
OPTIONS = _questions("--max-seq", "--max-rank", "--max-batch", "--fit-all-gpus", "--model-sweep", hidden=True)
# What a question varies itself: the options and the setting that would say it already
_TAKEN: dict[str, tuple[tuple[str, ...], str]] = {
    "max_seq": (("seq_len",), "seq_len"),
    "max_rank": ((), "rank"),
    "max_batch": ((), "micro_batch"),
    "fit_all_gpus": (("gpu", "vram_gib"), ""),
    "model_sweep": ((), ""),
}
_OPTION = {"seq_len": "--seq-len", "gpu": "--gpu", "vram_gib": "--vram"}


def answer(model: str, words: dict[str, Any], *, output: object, explain: bool, as_json: bool) -> int | None:
    """Answer the one what-if question among `words`, which are taken out, and print it.

    Returns the exit code; None where there is no such question. Raises: OptionError for a question that contradicts
    another option, and what planning raises.
    """
    questions = {name: value for name in _TAKEN if (value := words.pop(name))}
    if not questions:
        return None
    if len(questions) > 1:
        raise OptionError(
            f"{' and '.join(_flag(name) for name in questions)}: two questions",
            fix="ask one after the other; a value that is pinned (--seq-len, --set rank=...) holds in the next",
        )
    [(name, value)] = questions.items()
    _refuse_contradiction(name, words, output)
    if explain:
        raise OptionError(f"--explain: {_flag(name)} makes no plan to explain", fix="leave one of them out")
    wanted = planning.request(model, **words)
    from autoft.trainer.runtime import environment

    environment.prepare()
    if name == "model_sweep":
        from autoft.planner.what_if.models import members

        members(model, None if value == OWN_FAMILY else value)  # refuses before anything is rehearsed
    from autoft.profiles.detect import detect

    hardware = detect()
    with planning.rehearsing():
        from autoft.planner.what_if.context import make_frame

        frame = make_frame(wanted, hardware)
        return _ANSWERS[name](frame, value, as_json)


def _limit(quantity: Quantity, frame: Frame, _: object, as_json: bool) -> int:
    from autoft.planner.what_if.limits import find_limit

    limit = find_limit(frame, quantity)
    if as_json:
        options.print_json(limit.to_dict())
    else:
        show_limit(limit, render.console())
    return 0


def _cards(frame: Frame, _: object, as_json: bool) -> int:
    from autoft.planner.what_if.cards import SHARED, fit_all_cards

    fits = fit_all_cards(frame)
    if as_json:
        data = {
            "model": frame.request.model,
            "seq_len": frame.seq_len,
            "run": frame.run_of,
            "cards": [fit.to_dict() for fit in fits],
            "notes": [SHARED],
        }
        options.print_json(data)
    else:
        show_cards(frame, fits, SHARED, render.console())
    return 0 if any(fit.fits == "yes" for fit in fits) else 3


def _models(frame: Frame, family: str, as_json: bool) -> int:
    from autoft.planner.what_if.models import members, sweep_models

    name, models = members(frame.request.model, None if family == OWN_FAMILY else family)
    fits = sweep_models(frame, models)
    if as_json:
        data = {
            "family": name,
            "target": frame.target.name,
            "seq_len": frame.seq_len,
            "run": frame.run_of,
            "models": [fit.to_dict() for fit in fits],
        }
        options.print_json(data)
    else:
        show_models(frame, name, fits, render.console())
    return 0 if any(fit.fits == "yes" for fit in fits) else 3


_ANSWERS: dict[str, Callable[[Frame, Any, bool], int]] = {
    "max_seq": functools.partial(_limit, "seq_len"),
    "max_rank": functools.partial(_limit, "rank"),
    "max_batch": functools.partial(_limit, "micro_batch"),
    "fit_all_gpus": _cards,
    "model_sweep": _models,
}


def show_limit(limit: Limit, console: Console) -> None:
    """The most that fits, what the next would need, and how far the other recipes go."""
    from rich.text import Text

    from autoft.planner.search.candidates import describe
    from autoft.planner.what_if.limits import in_words
    from autoft.units import size

    best, estimate = limit.best, limit.best.estimate
    recipe = best.recipe
    console.print(Text(f"{limit.model} on {limit.target}", style="bold"))
    rows = [
        ("Most", _counted(limit, best.value) + ("" if limit.quantity == "rank" else f" ({in_words(limit.quantity)})")),
        ("Recipe", f"{describe(recipe)}, rank {recipe.rank}, {recipe.seq_len:,} tokens"),
        ("Memory", f"{size(estimate.device_bytes)} of {size(estimate.available_bytes)} usable"),
        ("Step", _step(estimate.step_time_s.lower, estimate.step_time_s.upper, estimate.tokens_per_s)),
    ]
    if best.next_estimate is not None:
        over = size(best.next_estimate.device_bytes - best.next_estimate.available_bytes)
        rows.append(("Beyond", f"{_counted(limit, best.next_value)} would need {over} more than usable"))
    else:
        rows.append(("Beyond", f"nothing: {limit.bound_by}"))
    console.print(render.facts(rows))
    console.print(Text("By recipe, each with what it needs", style="bold"))
    table = _grid("left", "right", "right")
    for ceiling in limit.ceilings:
        reached = "nothing" if ceiling.value is None else _counted(limit, ceiling.value)
        # without the micro-batch where that is what varies
        described = describe(ceiling.recipe, micro_batch=limit.quantity != "micro_batch")
        table.add_row(f"  {described}", reached, size(ceiling.estimate.device_bytes))
    console.print(table)


def show_cards(frame: Frame, found: list[CardFit], note: str, console: Console) -> None:
    """A line a card, by memory."""
    from rich.text import Text

    from autoft.planner.search.candidates import describe
    from autoft.units import size

    fitting = [fit for fit in found if fit.fits == "yes"]
    console.print(Text(f"{frame.request.model}, {frame.seq_len:,} tokens, on every card", style="bold"))
    rows = [("Fits", f"{len(fitting)} of {len(found)} cards")]
    if fitting:
        least = min(fitting, key=lambda fit: (fit.total_bytes, fit.run_time_s.middle))
        quickest = min(fitting, key=lambda fit: fit.run_time_s.middle)
        rows.append(("Smallest", f"{least.card} ({size(least.total_bytes)}): {describe(least.recipe)}"))
        rows.append(("Quickest", f"{quickest.card}: {_span(quickest.run_time_s)}"))
    else:
        rows.append(("Closest", f"{describe(found[-1].recipe)}, {size(found[-1].device_bytes)}"))
    rows.append(("Time of", frame.run_of))
    console.print(render.facts(rows))
    lines: list[Line] = []
    for fit in found:
        yes = fit.fits == "yes"
        chosen = _short(fit.recipe) if yes else f"nothing fits ({_short(fit.recipe)})"
        times = (_span(fit.run_time_s), _energy(fit.run_energy_kwh)) if yes else ("", "")
        power = f"{fit.power_w:.0f} W" if fit.power_w else ""
        lines.append((yes, (fit.card, size(fit.total_bytes), chosen, size(fit.device_bytes), *times, power)))
    _print_table(("Card", "Memory", "Plan", "Needs", "Time", "Energy", "Power"), lines, console)
    console.print(Text(f"Note: {note}", style="dim"))


def show_models(frame: Frame, family: str, found: list[ModelFit], console: Console) -> None:
    """A line a model, the smallest first."""
    from rich.text import Text

    from autoft.units import count, size

    console.print(Text(f"{family} on {frame.target.name}, {frame.seq_len:,} tokens", style="bold"))
    fitting = [fit for fit in found if fit.fits == "yes"]
    rows = [("Fits", f"{len(fitting)} of {len(found)} models"), ("Time of", frame.run_of)]
    if fitting:
        rows.insert(1, ("Largest", fitting[-1].model))
    console.print(render.facts(rows))
    lines: list[Line] = []
    for fit in found:
        chosen, need, times = fit.reason or "", "", ("", "")
        if fit.recipe is not None and fit.device_bytes is not None and fit.run_time_s is not None:
            chosen, need = _short(fit.recipe), size(fit.device_bytes)
            if fit.over_bytes is not None:
                chosen = f"{size(fit.over_bytes)} short ({chosen})"
            else:
                times = (_span(fit.run_time_s), _energy(fit.run_energy_kwh))
        weights = count(fit.params) if fit.params else ""
        lines.append((fit.fits == "yes", (fit.model, weights, chosen, need, *times)))
    _print_table(("Model", "Weights", "Plan", "Needs", "Time", "Energy"), lines, console)


def _print_table(names: tuple[str, ...], lines: list[Line], console: Console) -> None:
    """A row a line, without its last columns where they have no room; two rows where not even five have."""
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.text import Text

    columns = zip(names, *(cells for _, cells in lines), strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    shown = len(names)
    while shown > LEAST_COLUMNS and sum(widths[:shown]) + 2 * shown > console.width:
        shown -= 1
    if sum(widths[:shown]) + 2 * shown > console.width:
        for fits, (name, amount, *rest) in lines:
            style = "" if fits else "dim"
            console.print(Text(f"{name} ({amount})" if amount else name, style=style))
            console.print(Padding(Text(", ".join(cell for cell in rest[:3] if cell), style=style), (0, 0, 0, 2)))
        return
    table = _grid(*("left" if number in (0, 2) else "right" for number in range(shown)))
    table.add_row(*(Text(name, style="bold") for name in names[:shown]))
    for fits, cells in lines:
        table.add_row(*(Text(cell, style="" if fits else "dim") for cell in cells[:shown]))
    console.print(table)


def _short(recipe: Recipe) -> str:
    """QLoRA NF4, 4 rows, checkpointing."""
    words = [f"QLoRA {recipe.quant_type.upper()}" if recipe.quant_type else "LoRA", _rows(recipe.micro_batch)]
    checkpointing = ["checkpointing"] if recipe.gradient_checkpointing else []
    streamed = [f"{recipe.streamed_layers} layers streamed"] if recipe.streamed_layers else []
    return ", ".join([*words, *checkpointing, *streamed])


def _refuse_contradiction(name: str, words: dict[str, Any], output: object) -> None:
    taken, setting = _TAKEN[name]
    if output is not None:
        raise OptionError(f"-o: {_flag(name)} makes no plan to write", fix="plan with the value that it finds, and -o")
    for option in taken:
        if words[option] is not None:
            raise OptionError(
                f"{_OPTION[option]} and {_flag(name)}: both set what the question varies", fix="remove one of them"
            )
    if setting and any(word.partition("=")[0].strip() == setting for word in words["settings"]):
        raise OptionError(
            f"--set {setting} and {_flag(name)}: both set what the question varies", fix="remove one of them"
        )


def _flag(name: str) -> str:
    """The question as the command in hand calls it."""
    return next(param.opts[0] for param in click.get_current_context().command.params if param.name == name)


def _counted(limit: Limit, value: int | None) -> str:
    assert value is not None
    if limit.quantity == "rank":
        return f"rank {value:,}"
    return f"{value:,} tokens" if limit.quantity == "seq_len" else _rows(value)


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _step(lower: float, upper: float, tokens_per_s: float) -> str:
    from autoft.units import duration

    return f"{duration(lower)} to {duration(upper)}, about {tokens_per_s:,.0f} tokens/s"


def _span(span: Any) -> str:
    from autoft.units import duration

    return f"{duration(span.lower)} to {duration(span.upper)}"


def _energy(span: Any) -> str:
    from autoft.units import energy

    return "" if span is None else f"{energy(span.lower)} to {energy(span.upper)}"


def _grid(*sides: str) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for side in sides:
        table.add_column(justify=side, overflow="fold")  # type: ignore[arg-type]
    return table
