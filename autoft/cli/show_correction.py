"""What earlier runs here make expect, beside a plan's prediction; and with --explain the runs that say so."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft.planner.estimate import Ratio
from autoft.planner.history.correction import words
from autoft.planner.plan.record import Plan


def show_correction(plan: Plan, console: Console) -> None:
    """A line each for memory and time; nothing where no runs tell."""
    if plan.correction is not None:
        for what, text in words(plan.correction, plan.estimate, plan.run_time_s):
            console.print(Text(f"From runs here, {what}: ", style="cyan").append(text, style="default"))


def show_sources(plan: Plan, console: Console) -> None:
    """The runs that a plan's correction is from."""
    if plan.correction is None:
        console.print("No earlier runs on this device are like this one: the prediction stands alone", markup=False)
        return
    for name, ratio in (("memory", plan.correction.memory), ("time", plan.correction.time)):
        if ratio is not None:
            console.print(Text(f"What runs here make of the {name}", style="bold"))
            console.print(_sources(ratio))
    for at in plan.correction.exhausted:
        console.print(f"Ran out of memory: a run that ended {_when(at)}", markup=False)


def _sources(ratio: Ratio) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for source in ratio.sources:
        table.add_row(f"{source.ratio:.2f}", Text(f"times the prediction: {source.model}, ended {_when(source.at)}"))
    return table


def _when(at: str) -> str:
    return f"{at[:16].replace('T', ' ')} UTC"
