"""`autoft plan --diff A B`: two plans side by side, only what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.cli import options
from autoft.planner.plan.diff import Difference, differences
from autoft.planner.plan.record import read_plan
from autoft.units import duration, energy, size

TITLES = {"choice": "What is run", "memory": "Memory", "time": "Time", "inputs": "What they were made from"}


def show_diff(a: Path, b: Path, *, as_json: bool) -> None:
    """Raises: FileFormatError for a file that is no plan."""
    changes = differences(read_plan(a), read_plan(b))
    if as_json:
        options.print_json(
            {"a": str(a), "b": str(b), "same": not changes, "differences": [d.to_dict() for d in changes]}
        )
        return
    console = render.console()
    if not changes:
        console.print(f"{a} and {b} are the same plan", markup=False)
        return
    for group, title in TITLES.items():
        rows = [difference for difference in changes if difference.group == group]
        if rows:
            console.print(_table(title, rows, a.name, b.name, console))


def _table(title: str, rows: list[Difference], a: str, b: str, console: Console) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    share = max(8, (console.width - 6) // 4)
    table.add_column(Text(title, style="bold"), overflow="fold")
    for name in ("A", "B") if a == b else (a, b):
        table.add_column(Text(name, style="bold"), overflow="fold", max_width=2 * share, min_width=share)
    for row in rows:
        last = row.key.removeprefix("job.recipe.").removeprefix("job.").removeprefix("estimate.")
        table.add_row(Text(f"  {last}"), Text(_words(row.key, row.a)), Text(_words(row.key, row.b)))
    return table


def _words(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " to ".join(_span_end(key, value[end]) for end in ("lower", "upper"))
    is_size = key.endswith("_bytes") or (key.startswith("estimate.") and not key.endswith(("_params", "_per_s")))
    if isinstance(value, int) and not isinstance(value, bool) and is_size:
        return size(value)
    if key.endswith("sha256"):
        return str(value)[:12]
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _span_end(key: str, value: float) -> str:
    if key.endswith("_wh"):
        return energy(value / 1000)
    return energy(value) if key.endswith("_kwh") else duration(value)
