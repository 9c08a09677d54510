"""`autoft compare`: the base in 16, 8 or 4 bits, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from autoft import render
from autoft.cli import options, planning
from autoft.errors import OptionError

if TYPE_CHECKING:
    from rich.console import Console

    from autoft.planner.what_if.compare import Comparison, Side

NARROW_COLUMN = 21  # of a method; where three such have no room the methods come one after the other


@options.command(
    "Compare LoRA on a 16-bit base, on an 8-bit base, and QLoRA.\n\n"
    "Shows memory, time and sizes of each, and when to choose which. MODEL is as for `autoft plan`.",
    examples=(
        "autoft compare qwen2.5-7b-instruct --data mine.jsonl",
        "autoft compare llama-3.1-8b-instruct --gpu rtx-4090",
        "autoft compare starter --measure --steps 5",
    ),
)
@click.argument("model")
@planning.add(*planning.DATA, *planning.DEVICE, *planning.SETTINGS)
@click.option(
    "--measure",
    is_flag=True,
    help="Run a few real steps of each on this machine.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Steps to time after one warm-up step (default: 3)."
)
def command(model: str, measure: bool, steps: int | None, as_json: bool, **words: Any) -> int:
    if steps is not None and not measure:
        raise OptionError("--steps: nothing is measured", fix="add --measure, or leave it out")
    if measure and (words["vram_gib"] is not None or words["gpu"] not in (None, "cpu")):
        raise OptionError("--measure runs on this machine, and --gpu and --vram plan for another", fix="leave them out")
    if words["data"] is None and model == "starter":
        words["data"] = "starter"
    wanted = planning.request(model, method=None, **words)
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.profiles.detect import detect

    hardware = detect()
    with planning.rehearsing():
        from autoft.planner.what_if.compare import compare, refuse_pinned_method
        from autoft.planner.what_if.context import make_frame

        refuse_pinned_method(wanted)
        frame = make_frame(wanted, hardware)
        comparison = compare(frame)
    if measure:
        from autoft.planner.what_if.compare_measured import measured

        console = render.console(stderr=True)
        comparison = measured(comparison, frame, steps=steps or 3, say=lambda text: console.print(text, markup=False))
    if as_json:
        options.print_json(comparison.to_dict())
    else:
        show(comparison, render.console())
    return 0 if any(side.fits == "yes" for side in comparison.sides) else 3


def show(found: Comparison, console: Console) -> None:
    """A column a method, and when to choose which."""
    from rich.text import Text

    console.print(Text(f"{found.model} on {found.target}, sequences of {found.seq_len:,} tokens", style="bold"))
    rows = _rows(found)
    if console.width >= 16 + len(found.sides) * (NARROW_COLUMN + 2):
        _columns(found, rows, console)
    else:
        for number, side in enumerate(found.sides):
            console.print(Text(side.label, style="bold"))
            console.print(render.facts([(name, cells[number]) for name, cells in rows if cells[number]]))
    console.print(Text("Choose", style="bold"))
    for side in found.sides:
        console.print(Text(f"- {side.label} when {side.when} ({', '.join(side.sources)})"))
    if found.plan_takes is not None:
        label = next(side.label for side in found.sides if side.name == found.plan_takes)
        console.print(Text(f"- autoft plan chooses {label} here"))
    for note in found.notes:
        console.print(Text(f"Note: {note}", style="dim"))


def _columns(found: Comparison, rows: list[tuple[str, list[str]]], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in found.sides:
        table.add_column(overflow="fold", ratio=1)
    table.add_row("", *(Text(side.label, style="bold") for side in found.sides))
    for name, cells in rows:
        if any(cells):
            table.add_row(Text(f"  {name}"), *(Text(cell) for cell in cells))
    console.print(table)


def _rows(found: Comparison) -> list[tuple[str, list[str]]]:
    """(what, of each side in words)."""
    cells = [_cells(side, found.run) for side in found.sides]
    names = dict.fromkeys(name for of in sorted(cells, key=len, reverse=True) for name in of)
    return [(name, [of.get(name, "") for of in cells]) for name in names]


def _cells(side: Side, run: str) -> dict[str, str]:
    from autoft.units import count, duration, energy, size

    recipe, estimate = side.recipe, side.estimate
    if recipe is None or estimate is None:
        return {"Fits": f"no: {side.reason}"}
    cells = {
        "Fits": "yes" if side.fits == "yes" else f"no, {size(estimate.device_bytes - estimate.available_bytes)} short",
        "Base in": recipe.quant_type or recipe.base_dtype,
        "Micro-batch": str(recipe.micro_batch),
        "Checkpointing": "yes" if recipe.gradient_checkpointing else "no",
        "Memory": size(estimate.device_bytes),
        "Base weights": size(side.base_bytes or 0),
    }
    ram = max((num for phase, num in estimate.host_bytes.items() if phase != "merge"), default=None)
    if ram is not None:
        cells["Host RAM"] = size(ram)
        cells["Host RAM to merge"] = size(estimate.host_bytes["merge"])
    cells["Tokens/s"] = "{:,.0f} to {:,.0f}".format(*_speeds(side))
    assert side.run_time_s is not None
    assert side.deployment_bytes is not None
    cells[run] = f"{duration(side.run_time_s.lower)} to {duration(side.run_time_s.upper)}"
    if side.run_energy_kwh is not None:
        cells["Energy"] = f"{energy(side.run_energy_kwh.lower)} to {energy(side.run_energy_kwh.upper)}"
    share = estimate.trainable_params / estimate.total_params
    cells["Trained weights"] = f"{count(estimate.trainable_params)}, {share:.2%}"
    cells["Adapter file"] = size(side.adapter_bytes or 0)
    for form, num in side.deployment_bytes.items():
        cells[f"Serve {form.replace('_', ' ')}"] = size(num)
    example = f", such as {side.smallest_card}" if side.smallest_card else ""
    cells["Smallest card"] = "more than 80 GiB" if side.smallest_gib is None else f"{side.smallest_gib} GiB{example}"
    return {**cells, **_measured_cells(side)}


def _speeds(side: Side) -> tuple[float, float]:
    """(least, most) tokens a second."""
    assert side.recipe is not None
    assert side.estimate is not None
    tokens = side.recipe.micro_batch * side.recipe.seq_len
    return tokens / side.estimate.step_time_s.upper, tokens / side.estimate.step_time_s.lower


def _measured_cells(side: Side) -> dict[str, str]:
    from autoft.units import duration, size

    measured = side.measured
    if measured is None:
        return {}
    recipe = measured.recipe
    cells = {"Measured at": f"{recipe.micro_batch} x {recipe.seq_len:,} tokens"}
    if measured.steps is None:
        return {**cells, "Measured": f"nothing: {measured.failed}"}
    steps, predicted = measured.steps, measured.predicted_step_s
    cells["Peak"] = f"{size(steps.peak_bytes)}, predicted {size(measured.predicted_bytes)}"
    span = f"{duration(predicted.lower)} to {duration(predicted.upper)}"
    cells["Step"] = f"{duration(steps.step_time_s)}, predicted {span}"
    if measured.perplexity is not None:
        cells["Base's loss"] = f"{steps.heldout_loss:.4f}, perplexity {measured.perplexity:.3f}"
    return cells
