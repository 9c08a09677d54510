"""Runs for people: a list, one run, several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.trainer.report import wording
from autoft.units import size

if TYPE_CHECKING:
    from autoft.trainer.storage.runs import StoredRun

WIDE, NARROW = 110, 70
SHORT_ID = 8
COLUMNS = ("Run", "Id", "State", "When, UTC", "Base", "Data", "Steps", "Loss", "Score", "Size", "Tags")
FIRST = ("Run", "Id", "State", "When, UTC", "Steps", "Loss", "Score")  # where there is no room for all
NUMBERS = ("Steps", "Loss", "Score", "Size")
LEFT_OUT = ("loss", "perplexity")  # of a score: the loss has a column of its own


def show_list(runs: Sequence[StoredRun], console: Console) -> None:
    """A row a run where there is room, a block a run where not; then what to do about missing ones."""
    if not runs:
        console.print(
            "No runs yet. `autoft run` adds them; `autoft runs list DIR` adds those of a folder.", markup=False
        )
        return
    if console.width < NARROW:
        for run in runs:
            title, *cells = _cells(run).items()
            console.print(Text(title[1], style="bold"))
            console.print(render.facts([(name, cell) for name, cell in cells if cell]))
    else:
        columns = FIRST if console.width < WIDE else COLUMNS
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name, overflow="fold", justify="right" if name in NUMBERS else "left")
        for run in runs:
            cells_of_run = _cells(run)
            table.add_row(*(Text(cells_of_run[name]) for name in columns))
        console.print(table)
    if any(run.state == "missing" for run in runs):
        console.print(
            "Missing: moved or deleted. `autoft runs list DIR` adds a moved run, `autoft runs clean --yes` forgets it.",
            markup=False,
        )


def show_run(run: StoredRun, console: Console) -> None:
    """What it was, its scores, and what to type next."""
    from autoft.cli.show import scores

    console.print(Text(_shown(run.folder), style="bold"))
    rows = [("Id", run.id), ("State", run.state), ("When, UTC", _when(run)), ("Base", run.base or "")]
    rows += [("Method", run.method or ""), ("Data", run.data or ""), ("Steps", _steps(run))]
    rows += [("Size", size(run.bytes)), ("Tags", ", ".join(run.tags))]
    if run.job is not None:
        rows += [("Settings", ", ".join(f"{name} {value}" for name, value in _own_settings(run).items()))]
    console.print(render.facts([(name, value) for name, value in rows if value]))
    if run.before is not None and run.after is not None:
        console.print(scores(run.before, run.after))
    words = _next(run)
    if words:
        console.print(f"Next: {words}", style="bold", markup=False, soft_wrap=True)


def show_comparison(runs: Sequence[StoredRun], console: Console) -> None:
    """Settings that differ, then scores after training; a column a run."""
    heads = [_head(run, runs) for run in runs]
    settings = differing_settings(runs)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for head in heads:
        table.add_column(Text(head), overflow="fold", justify="right")
    for name, values in settings.items():
        table.add_row(Text(name), *(Text(_plain(value)) for value in values))
    if settings:
        table.add_section()
    for score in wording.SCORES:
        values = [None if run.after is None else getattr(run.after, score.name) for run in runs]
        if any(value is not None for value in values):
            table.add_row(Text(score.label), *(Text(score.text(value)) for value in values))
    console.print(table)
    if not settings:
        console.print("Settings: the same")


def differing_settings(runs: Sequence[StoredRun]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, by their dotted names: a value for each run."""
    flat = [_flat({} if run.job is None else run.job.to_dict()) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    columns = {name: [settings.get(name) for settings in flat] for name in names}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def scores_of(runs: Sequence[StoredRun]) -> dict[str, list[float | None]]:
    """Scores on held-out rows after training, by name: a value for each run, None where it has none."""
    columns = {
        score.name: [None if run.after is None else getattr(run.after, score.name) for run in runs]
        for score in wording.SCORES
    }
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _own_settings(run: StoredRun) -> dict[str, Any]:
    """Settings of the run that are not the default ones."""
    assert run.job is not None
    from autoft.trainer.job import Job
    from autoft.trainer.recipe import Recipe

    usual = _flat(Job(model=run.job.model, data=run.job.data, recipe=Recipe()).to_dict())
    own = {name: value for name, value in _flat(run.job.to_dict()).items() if value != usual[name]}
    return {name.removeprefix("recipe."): _plain(value) for name, value in own.items()}


def _cells(run: StoredRun) -> dict[str, str]:
    """By their columns."""
    after = run.after
    loss = "" if after is None or after.loss is None else f"{after.loss:.3f}"
    base = f"{run.base} ({run.method})" if run.base and run.method else run.base or ""
    cells = (
        _shown(run.folder), run.id[:SHORT_ID], run.state, _when(run), base, run.data or "", _steps(run), loss,
        _score(run), size(run.bytes) if run.bytes else "", ", ".join(run.tags),
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def _score(run: StoredRun) -> str:
    """The figure that picked the weights, or the first one besides the loss."""
    if run.after is None or run.job is None:
        return ""
    named = {score.name: score for score in wording.SCORES if score.name not in LEFT_OUT}
    first = named.get(run.job.metric)
    for score in (*([first] if first is not None else []), *named.values()):
        value = getattr(run.after, score.name)
        if value is not None:
            return f"{score.text(value)} {score.label}"
    return ""


def _shown(folder: str) -> str:
    """The folder as one would type it here."""
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) and path != Path.cwd() else folder


def _when(run: StoredRun) -> str:
    return run.at[:16].replace("T", " ")


def _steps(run: StoredRun) -> str:
    return "" if run.steps is None else f"{run.steps:,}"


def _head(run: StoredRun, runs: Sequence[StoredRun]) -> str:
    name = Path(run.folder).name
    same = [other for other in runs if Path(other.folder).name == name]
    return name if len(same) == 1 else f"{name} {run.id[:SHORT_ID]}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _next(run: StoredRun) -> str:
    folder = _shown(run.folder)
    return {
        "finished": f"autoft chat {folder}",
        "running": f"autoft watch {folder}",
        "interrupted": f"autoft resume {folder}",
        "missing": "autoft runs list DIR, with the folder that it was moved to",
    }.get(run.state, "")
