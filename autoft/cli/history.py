"""`autoft history`: what runs on this machine were predicted to take, and took."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.cli import options
from autoft.errors import Interrupted, OptionError, OutputError
from autoft.home import write_text
from autoft.units import duration, size

if TYPE_CHECKING:
    from autoft.planner.history.past_runs import PastRun

FORMATS = (".json", ".csv")
WIDE = 100
MIN_COLUMN = 10


@options.command(
    "Show predicted and measured memory and speed of past runs, newest first.\n\n"
    "Later plans on the same device show them too. Kept in AUTOFT_HOME/history.sqlite, never sent anywhere.",
    examples=("autoft history", "autoft history --device 3060", "autoft history --export runs.csv"),
)
@click.option("--device", metavar="NAME", help="Only runs on devices whose name contains NAME.")
@click.option("--export", metavar="FILE", help="Write the runs to FILE (.json or .csv).")
@options.FORCE
@click.option("--clear", is_flag=True, help="Delete all runs, after a question.")
@click.option("--yes", is_flag=True, help="Do not ask before --clear.")
def command(device: str | None, export: str | None, force: bool, clear: bool, yes: bool, as_json: bool) -> None:
    if clear and export is not None:
        raise OptionError("--export and --clear: one at a time", fix=f"autoft history --export {export}, then --clear")
    if yes and not clear:
        raise OptionError("--yes belongs to --clear", fix="leave it out, or autoft history --clear --yes")
    target = _export_file(export) if export is not None else None
    if target is not None:
        options.check_free(target, "--export", force=force)
    from autoft.planner.history import past_runs

    notes = render.console(stderr=True)
    aside = past_runs.put_aside()
    if aside is not None:
        notes.print(f"Note: {aside}", markup=False)
    runs = _of_device(past_runs.runs(), device)
    if clear:
        _clear(runs, device, yes=yes, as_json=as_json)
    elif target is not None:
        write_text(target, _as_csv(runs) if target.suffix.lower() == ".csv" else _as_json(runs))
        if as_json:
            options.print_json({"file": str(target), "runs": len(runs)})
        else:
            click.echo(f"{_count(runs)} written to {target}")
    elif as_json:
        options.print_json({"file": str(past_runs.path()), "runs": [run.to_dict() for run in runs]})
    else:
        _show(runs, render.console())


def _export_file(name: str) -> Path:
    """Raises: OptionError for another suffix, OutputError where no file can be written."""
    path = Path(name)
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"--export {path}: neither .json nor .csv", fix=f"--export {path.stem or 'history'}.json")
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(f"--export {path}: not a file that can be written", fix="a file in a folder of your own")
    return path


def _of_device(runs: list[PastRun], device: str | None) -> list[PastRun]:
    """Raises: OptionError where there are runs, and none on such a device."""
    if device is None:
        return runs
    of_device = [run for run in runs if device.casefold() in run.device_name.casefold()]
    if runs and not of_device:
        names = "; ".join(dict.fromkeys(run.device_name for run in runs))
        raise OptionError(f"--device {device}: no run was on such a device", fix=f"part of one of: {names}")
    return of_device


def _clear(runs: list[PastRun], device: str | None, *, yes: bool, as_json: bool) -> None:
    from autoft.planner.history import past_runs

    if runs and not yes:
        if not sys.stdin.isatty():
            raise OptionError("--clear deletes for good, and there is no terminal to ask on", fix="add --yes")
        if not click.confirm(f"Delete {_count(runs)} from {past_runs.path()}?", err=True):
            raise Interrupted("nothing was deleted")
    deleted = past_runs.clear(None if device is None else sorted({run.device for run in runs}))
    left = [str(path) for path in past_runs.set_aside()]
    if as_json:
        options.print_json({"deleted": deleted, "put_aside": left})
        return
    click.echo(f"{deleted} run{'s' * (deleted != 1)} deleted")
    for path in left:
        click.echo(f"Still there: {path}, put aside earlier because autoft could not read it")


def _as_json(runs: list[PastRun]) -> str:
    return json.dumps([run.to_dict() for run in runs], indent=2, ensure_ascii=False) + "\n"


def _as_csv(runs: list[PastRun]) -> str:
    """One row a run, the columns of the table; versions and recipe as JSON."""
    from autoft.planner.history.past_runs import AS_JSON, COLUMNS

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        values: dict[str, Any] = run.to_dict()
        writer.writerow({**values, **{name: json.dumps(values[name], ensure_ascii=False) for name in AS_JSON}})
    return text.getvalue()


def _show(runs: list[PastRun], console: Console) -> None:
    if not runs:
        console.print("No runs yet: `autoft run` keeps what each predicted and measured here.", markup=False)
        return
    if console.width < WIDE:
        for run in runs:
            when, what, memory, step = (", ".join(cell) for cell in _cells(run))
            console.print(Text(f"{when}  {what}", style="bold"))
            console.print(render.facts([("Device", run.device_name), ("Memory", memory), ("Step", step)]))
        return
    for device in dict.fromkeys(run.device_name for run in runs):
        console.print(Text(f"On {device}", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("When, UTC", "Run", "Memory", "Step"):
            table.add_column(name, overflow="fold", min_width=MIN_COLUMN)
        for run in runs:
            if run.device_name == device:
                table.add_row(*(Text("\n".join(cell)) for cell in _cells(run)))
        console.print(table)


def _cells(run: PastRun) -> tuple[list[str], ...]:
    """When, what, memory and time of a step, each predicted and measured; a line a part."""
    recipe = run.recipe
    method = " ".join(str(recipe[name]) for name in ("method", "quant_type") if recipe.get(name))
    what = [run.model, f"{method}, {recipe.get('micro_batch')} x {recipe.get('seq_len')} tokens"]
    memory = ["ran out of memory" if not run.finished else _memory(run.measured_peak_bytes)]
    step = [] if run.measured_step_s is None else [duration(run.measured_step_s)]
    if run.predicted_peak_bytes is not None:
        memory.append(f"predicted {_memory(run.predicted_peak_bytes)}")
    if run.predicted_step_lower_s is not None and run.predicted_step_upper_s is not None and step:
        bounds = duration(run.predicted_step_lower_s), duration(run.predicted_step_upper_s)
        step.append(f"predicted {bounds[0]} to {bounds[1]}")
    return [run.at[:16].replace("T", " ")], what, memory, step


def _memory(num_bytes: int | None) -> str:
    return "" if num_bytes is None else size(num_bytes)


def _count(runs: list[PastRun]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"
