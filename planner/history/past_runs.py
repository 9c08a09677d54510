"""What became of every run, kept in AUTOFT_HOME/history.sqlite: predicted beside measured. No torch here."""

from __future__ import annotations

import datetime
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from autoft import __version__
from autoft.errors import OutputError
from autoft.home import home
from autoft.profiles.bench_store import cpu_key, gpu_key
from autoft.profiles.gpu_catalogue import gpu_for
from autoft.profiles.hardware import Gpu, Hardware
from autoft.profiles.host import installed_version
from autoft.schema import Record

if TYPE_CHECKING:
    from autoft.planner.plan.record import Plan
    from autoft.trainer.result import Predicted, RunResult

SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")
BUSY_S = 10.0  # so long another process may hold the file before we give up
TABLE = """
CREATE TABLE IF NOT EXISTS runs (
    at TEXT NOT NULL,
    device TEXT NOT NULL,
    device_name TEXT NOT NULL,
    circumstances TEXT NOT NULL,
    versions TEXT NOT NULL,
    model TEXT NOT NULL,
    recipe TEXT NOT NULL,
    finished INTEGER NOT NULL,
    predicted_peak_bytes INTEGER,
    predicted_reserved_bytes INTEGER,
    predicted_device_bytes INTEGER,
    predicted_step_lower_s REAL,
    predicted_step_upper_s REAL,
    time_basis TEXT,
    measured_peak_bytes INTEGER,
    measured_reserved_bytes INTEGER,
    measured_step_s REAL,
    measured_tokens_per_s REAL,
    steps INTEGER
)
"""
GPUS = "gpus"  # of circumstances, where a run was on more than one
# time_basis of rows that were written before there were keys for it: their words, and the key of today
OLDER_BASES = {
    "measured just now": "measured now",
    "from the data sheet": "data sheet",
    r"from the data sheet and its (\d+) W limit": "data sheet, held to {} W",
    "assumed": "assumption",
    r"measured on (\d{4}-\d\d-\d\d), .*": "bench of {}",
}
AS_JSON = ("circumstances", "versions", "recipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun(Record):
    """One run that finished or ran out of memory: a row of the table, in the order of its columns.

    at: when it ended, ISO, UTC. device, device_name, circumstances: of a BenchKey, and of several GPUs how many.
    versions: of autoft and its libraries. recipe: the Recipe as a dict, since another version's may have other fields.
    steps: that were made.
    predicted_*: of the Estimate, the steps' time as the RunResult has it; None where the plan was for another device.
    time_basis: key of where the predicted time is from.
    measured_*: of the RunResult; None where the run ran out of memory.
    """

    at: str
    device: str
    device_name: str
    circumstances: dict[str, str]
    versions: dict[str, str]
    model: str
    recipe: dict[str, Any]
    finished: bool
    predicted_peak_bytes: int | None = None
    predicted_reserved_bytes: int | None = None
    predicted_device_bytes: int | None = None
    predicted_step_lower_s: float | None = None
    predicted_step_upper_s: float | None = None
    time_basis: str | None = None
    measured_peak_bytes: int | None = None
    measured_reserved_bytes: int | None = None
    measured_step_s: float | None = None
    measured_tokens_per_s: float | None = None
    steps: int | None = None


COLUMNS = tuple(field.name for field in fields(PastRun))


def remember(plan: Plan, predicted: Predicted, hardware: Hardware, result: RunResult | None) -> list[str]:
    """Keep what became of a run; the lines to tell. A file that cannot be written to never fails a run.

    hardware: the machine it ran on. result: None where the run ran out of memory.
    """
    notes = []
    try:
        aside = put_aside()
        notes += [aside] if aside else []
        add(past_run(plan, predicted, hardware, result))
    except OutputError as error:
        notes.append(f"this run is not in the history: {error.what}")
    return notes


def past_run(plan: Plan, predicted: Predicted, hardware: Hardware, result: RunResult | None) -> PastRun:
    """The run of `plan` on `hardware`, on the first GPU that this process sees or on the CPU."""
    gpu = hardware.gpus[0] if plan.job.device == "cuda" and hardware.gpus else None
    key = (gpu and gpu_key(gpu, hardware.driver_version)) or cpu_key(hardware.host)
    together = {GPUS: str(plan.job.num_gpus)} if plan.job.num_gpus > 1 else {}
    estimate = plan.estimate
    forecast: dict[str, Any] = {}
    if _planned_for(plan, hardware, gpu):
        forecast = {
            "predicted_peak_bytes": estimate.peak_allocated_bytes,
            "predicted_reserved_bytes": estimate.peak_reserved_bytes,
            "predicted_device_bytes": estimate.device_bytes,
            "predicted_step_lower_s": predicted.step_time_lower_s,
            "predicted_step_upper_s": predicted.step_time_upper_s,
            "time_basis": estimate.time_basis,
        }
    measured: dict[str, Any] = {}
    if result is not None:
        measured = {
            "measured_peak_bytes": result.measured.peak_bytes,
            "measured_reserved_bytes": result.measured.peak_reserved_bytes,
            "measured_step_s": result.measured.step_time_s,
            "measured_tokens_per_s": result.measured.tokens_per_s,
            "steps": result.steps,
        }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return PastRun(
        at=result.finished_at if result else now,
        device=key.device,
        device_name=key.name,
        circumstances={**key.circumstances, **together},
        versions=installed(),
        model=plan.job.model,
        recipe=plan.job.recipe.to_dict(),
        finished=result is not None,
        **forecast,
        **measured,
    )


def installed() -> dict[str, str]:
    """Versions of all that a prediction and a run depend on, by metadata: nothing is imported."""
    return {"autoft": __version__, **{library: installed_version(library) or "" for library in LIBRARIES}}


def add(run: PastRun) -> None:
    """Raises: OutputError where the file cannot be written to."""
    values = {**run.to_dict(), **{name: json.dumps(getattr(run, name)) for name in AS_JSON}}
    with _told(), closing(_connect("rwc")) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(TABLE)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        places = ", ".join(f":{name}" for name in COLUMNS)
        db.execute(f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES ({places})", values)
        db.execute("COMMIT")


def runs(device: str | None = None) -> list[PastRun]:
    """The runs kept, of one device or of all, newest first. A row that does not make sense is left out.

    None of a newer autoft's file, whose columns may mean something else.
    Raises: OutputError where the file cannot be read.
    """
    where, values = ("WHERE device = ?", (device,)) if device is not None else ("", ())
    with _told():
        if not path().exists():
            return []
        with closing(_connect("rw")) as db:
            if not _is_ours(db):
                return []
            rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM runs {where} ORDER BY at DESC, rowid DESC", values)
            return [run for run in map(_run, rows) if run is not None]


def clear(devices: list[str] | None = None) -> int:
    """Delete the runs of some devices or of all, leaving none of their bytes; how many there were.

    Raises: OutputError where the file cannot be written to.
    """
    with _told():
        if not path().exists():
            return 0
        with closing(_connect("rw")) as db:
            if not _is_ours(db):
                return 0
            db.execute("PRAGMA secure_delete = ON")
            where = "" if devices is None else f"WHERE device IN ({', '.join('?' * len(devices))})"
            deleted = db.execute(f"DELETE FROM runs {where}", devices or []).rowcount
            db.execute("VACUUM")
            return deleted


def put_aside() -> str | None:
    """Rename a file that is damaged or of a newer autoft, so that a new one can begin; the line to tell.

    Raises: OutputError where it cannot be renamed.
    """
    with _told():
        if not path().exists() or not _unusable():
            return None
        with FileLock(path().with_suffix(".lock"), timeout=BUSY_S):
            reason = _unusable()  # another process may have renamed it meanwhile
            if reason is None:
                return None
            number = 1
            while (aside := path().with_name(f"history.aside-{number}.sqlite")).exists():
                number += 1
            path().rename(aside)
            # left where it is, SQLite would play it back into the new file
            journal = path().with_name(f"{path().name}-journal")
            if journal.exists():
                journal.rename(aside.with_name(f"{aside.name}-journal"))
    return f"the history of runs is {reason}: put aside as {aside}, a new one begins"


def set_aside() -> list[Path]:
    """Files that were put aside and are still there."""
    return sorted(home().glob("history.aside-*.sqlite"))


def path() -> Path:
    """Where the history is kept."""
    return home() / "history.sqlite"


def _planned_for(plan: Plan, hardware: Hardware, gpu: Gpu | None) -> bool:
    """Whether the plan's figures are of the device that the run was on."""
    if gpu is None:
        planned, here = plan.hardware.host, hardware.host
        return plan.job.device == "cpu" and (planned.cpu, planned.cores) == (here.cpu, here.cores)
    profile = gpu_for(gpu.name, gpu.total_bytes)
    return plan.card in (gpu.name, profile.product if profile else None)


def _connect(mode: str) -> sqlite3.Connection:
    """mode: rw, or rwc to create it. Text that is no UTF-8 reads with question marks."""
    if mode == "rwc":
        path().parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(f"{path().as_uri()}?mode={mode}", uri=True, timeout=BUSY_S, isolation_level=None)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return db


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with the file, as one line."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"{path()}: {reason}", fix="check that file, or set AUTOFT_HOME to a folder that can be written to"
        ) from None


def _is_ours(db: sqlite3.Connection) -> bool:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return version == SCHEMA_VERSION and _columns(db) == COLUMNS


def _columns(db: sqlite3.Connection) -> tuple[str, ...]:
    return tuple(row[1] for row in db.execute("PRAGMA table_info(runs)"))


def _unusable() -> str | None:
    """Why the file cannot be gone on with; None where it can, or is not there."""
    if not path().exists():
        return None
    try:
        with closing(_connect("rw")) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                return f"of a newer autoft (schema {version}, this one writes {SCHEMA_VERSION})"
            columns = _columns(db)
            if columns != (COLUMNS if version else ()) or db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return "damaged"
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        return "damaged"
    return None


def _run(row: tuple[Any, ...]) -> PastRun | None:
    values = dict(zip(COLUMNS, row, strict=True))
    try:
        values |= {name: json.loads(values[name]) for name in AS_JSON}
        for name in COLUMNS:
            if name.endswith(("_s", "_bytes")) and not isinstance(values[name], (int, float, type(None))):
                return None
    except (ValueError, TypeError, RecursionError):
        return None
    if not all(isinstance(values[name], dict) for name in AS_JSON):
        return None
    return PastRun(
        **{**values, "finished": bool(values["finished"]), "time_basis": _basis_of_now(values["time_basis"])}
    )


def _basis_of_now(kept: str | None) -> str | None:
    """The key of a time basis. Rows from before there were keys have words in its place, which stay as they were."""
    for words, key in OLDER_BASES.items():
        match = re.fullmatch(words, kept or "")
        if match is not None:
            return key.format(*match.groups())
    return kept
