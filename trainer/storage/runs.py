"""The runs that lie in folders: what each was, how far it came, and whether it is under way."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from autoft.errors import AutoftError, FileFormatError, OutputError
from autoft.schema import Record, object_in, parse_toml, read_text
from autoft.trainer.events import Step, Stopped
from autoft.trainer.job import Job
from autoft.trainer.result import Evaluation, RunResult
from autoft.trainer.storage.checkpoint import has_checkpoints
from autoft.trainer.storage.event_log import EVENTS, read_events
from autoft.trainer.storage.ownership import (
    CHECKPOINTS,
    RESULT,
    RUN,
    WORK,
    about_run,
    discard,
    foreign,
    is_finished,
    written,
)
from autoft.trainer.storage.places import public_name
from autoft.trainer.storage.run_folder import UNFINISHED, exclusive, is_being_written, unfinished
from autoft.trainer.storage.run_index import Entry

State = Literal["running", "finished", "interrupted", "failed", "damaged", "missing"]
FOR_RESUMING = (CHECKPOINTS, WORK, RUN)  # what only an unfinished run needs


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRun(Record):
    """A run as its folder has it.

    folder: absolute, by the name that it has once finished; path: where its files are now. at: when it finished, was
    last written to, or, of a missing one, was added to the index; UTC. bytes: of its files. job, before, after: None
    where they are not known. state: interrupted can be resumed; failed cannot, or would fail again; damaged has a
    result.json that this version cannot read; missing was moved or deleted.
    """

    id: str
    folder: str
    path: str
    state: State
    at: str
    base: str | None = None
    method: str | None = None
    data: str | None = None
    steps: int | None = None
    bytes: int = 0
    tags: tuple[str, ...] = ()
    job: Job | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal(Record):
    """What `clean` removes of a run: "checkpoints" of a finished one, or the whole "run". bytes: on the disk."""

    id: str
    folder: str
    what: Literal["checkpoints", "run"]
    bytes: int


def runs_in(folder: Path) -> list[StoredRun]:
    """The runs of `folder`, or, where it is no run's, of the folders in it."""
    folder = folder.absolute()
    here = runs_at(_out(folder))
    if here or not folder.is_dir():
        return here
    outs = {_out(path): None for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()}
    return [run for out in outs for run in runs_at(out)]


def runs_at(out: Path) -> list[StoredRun]:
    """The finished run in `out` and the unfinished one that is to become it, those of them that are there."""
    runs = []
    if not out.name:  # the root of all
        return []
    if is_finished(out):
        runs.append(_finished(out))
    if unfinished(out).is_dir() and (about_run(unfinished(out)) or has_checkpoints(unfinished(out) / CHECKPOINTS)):
        runs.append(_unfinished(out))
    return runs


def known_runs(entries: Sequence[Entry]) -> list[StoredRun]:
    """The runs of the index, newest first, with their tags. One that another has replaced is left out."""
    folders = dict.fromkeys(entry.folder for entry in entries)
    runs = [run for folder in folders for run in runs_at(Path(folder))]
    present, places = {run.id for run in runs}, {run.folder for run in runs}
    runs += [_missing(entry) for entry in entries if entry.id not in present and entry.folder not in places]
    tags = {entry.id: entry.tags for entry in entries}
    return newest_first(replace(run, tags=tags.get(run.id, ())) for run in runs)


def newest_first(runs: Iterable[StoredRun]) -> list[StoredRun]:
    """By when they finished or were last written to."""
    return sorted(runs, key=lambda run: (run.at, run.folder), reverse=True)


def entry_of(run: StoredRun) -> Entry:
    """The line of the index for a run."""
    return Entry(
        id=run.id, folder=run.folder, at=run.at, base=run.base, method=run.method, data=run.data, tags=run.tags
    )


def entry_of_job(run_id: str, out: Path, job: Job) -> Entry:
    """The line of the index for a run that begins. out: where it will be."""
    data = None if job.data is None else public_name(job.data)
    return Entry(
        id=run_id,
        folder=str(out.absolute()),
        at=_iso(datetime.datetime.now(datetime.UTC).timestamp()),
        base=public_name(job.model),
        method=job.recipe.method,
        data=data,
    )


def removals(runs: Iterable[StoredRun], *, interrupted: bool) -> list[Removal]:
    """What can go: checkpoints that finished runs have left, and failed runs whole. interrupted: those runs too."""
    chosen = []
    for run in runs:
        if run.state == "finished":
            names = [name for part in FOR_RESUMING for name in written(Path(run.path), part)]
            if names:
                num_bytes = _bytes_of(Path(run.path), names)
                chosen.append(Removal(id=run.id, folder=run.folder, what="checkpoints", bytes=num_bytes))
        elif run.state == "failed" or (run.state == "interrupted" and interrupted):
            num_bytes = _bytes_of(Path(run.path), written(Path(run.path)))
            chosen.append(Removal(id=run.id, folder=run.folder, what="run", bytes=num_bytes))
    return chosen


def remove(removal: Removal) -> list[str]:
    """Remove it; returns the files that stay in the folder of a whole run, as autoft did not write them.

    Raises: OutputError when a run is writing there, or the run is no longer what it was.
    """
    out = Path(removal.folder)
    with exclusive(out):
        path = next((Path(run.path) for run in runs_at(out) if run.id == removal.id), None)
        if path is None or (path == out) != (removal.what == "checkpoints"):
            raise OutputError(f"{out}: changed meanwhile", fix="autoft runs clean shows what there is now")
        for part in FOR_RESUMING if removal.what == "checkpoints" else ("",):
            discard(path, part)
    return foreign(path) if removal.what == "run" else []


def _finished(out: Path) -> StoredRun:
    stored = object_in(out / RESULT)
    run_id = stored.get("run_id") or hashlib.sha256((out / RESULT).read_bytes()).hexdigest()[:32]
    at = _iso((out / RESULT).stat().st_mtime)
    num_bytes = _bytes_of(out, written(out))
    run = StoredRun(id=str(run_id), folder=str(out), path=str(out), state="damaged", at=at, bytes=num_bytes)
    try:
        result = RunResult.from_dict(stored)
    except FileFormatError:
        return run
    return replace(
        run,
        state="finished",
        at=result.finished_at,
        base=result.base,
        method=result.job.recipe.method,
        data=result.job.data,
        steps=result.steps,
        job=result.job,
        before=result.before,
        after=result.after,
    )


def _unfinished(out: Path) -> StoredRun:
    folder = unfinished(out)
    steps, stopped = None, False
    with suppress(OSError):
        for recorded in read_events(folder / EVENTS):
            if isinstance(recorded.event, Step):
                steps = recorded.event.step
            stopped = isinstance(recorded.event, Stopped) and not recorded.event.resumable
    state: State = "interrupted"
    if is_being_written(out):
        state = "running"
    elif stopped or not has_checkpoints(folder / CHECKPOINTS):
        state = "failed"
    job = _job_of(folder)
    last = folder / EVENTS
    run_id = about_run(folder).get("run_id") or hashlib.sha256(str(folder).encode(errors="replace")).hexdigest()[:32]
    return StoredRun(
        id=str(run_id),
        folder=str(out),
        path=str(folder),
        state=state,
        at=_iso((last if last.exists() else folder).stat().st_mtime),
        base=None if job is None else job.model,
        method=None if job is None else job.recipe.method,
        data=None if job is None else job.data,
        steps=steps,
        bytes=_bytes_of(folder, written(folder)),
        job=job,
    )


def _missing(entry: Entry) -> StoredRun:
    return StoredRun(
        id=entry.id, folder=entry.folder, path=entry.folder, state="missing", at=entry.at, base=entry.base,
        method=entry.method, data=entry.data,
    )  # fmt: skip


def _job_of(folder: Path) -> Job | None:
    try:
        plan = parse_toml(read_text(folder / "plan.toml"), where="plan.toml")
        return Job.from_dict(plan["job"])
    except (AutoftError, KeyError, TypeError):
        return None


def _out(folder: Path) -> Path:
    return folder.with_name(folder.name.removesuffix(UNFINISHED)) if folder.name else folder


def _bytes_of(folder: Path, names: Iterable[str]) -> int:
    total = 0
    for name in names:
        with suppress(OSError):
            total += (folder / name).lstat().st_size
    return total


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
