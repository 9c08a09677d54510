"""Which runs this machine has: AUTOFT_HOME/runs.jsonl, a line a run. What became of each, its folder says (runs.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from autoft.errors import FileFormatError
from autoft.home import home, write_lines
from autoft.schema import Record, parse_json

WAIT_S = 10.0  # for another process that writes a line


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry(Record):
    """A line. folder: the run's, absolute, by the name that it has once finished. at: when it was added, UTC.

    base, method, data: what to show of a run whose folder is gone.
    """

    id: str
    folder: str
    at: str
    base: str | None = None
    method: str | None = None
    data: str | None = None
    tags: tuple[str, ...] = ()


def path() -> Path:
    """The file, which may be missing."""
    return home() / "runs.jsonl"


def entries() -> list[Entry]:
    """The last line of each run in each folder, in the order of the first; a damaged line is left out.

    A file that is missing or cannot be read is empty: `autoft runs list DIR` fills it again.
    """
    by_place: dict[tuple[str, str], Entry] = {}
    for line in _lines():
        entry = _entry(line)
        if entry is not None:
            by_place[entry.id, entry.folder] = entry
    return list(by_place.values())


def add(new: Iterable[Entry]) -> None:
    """Append those that are not there yet, with the tags that the run has in another folder.

    Raises: OSError when the file cannot be written, or another process holds it for long.
    """
    with _locked():
        known = {(entry.id, entry.folder) for entry in entries()}
        tags = {entry.id: entry.tags for entry in entries()}
        missing = [entry for entry in new if (entry.id, entry.folder) not in known]
        _append([replace(entry, tags=entry.tags or tags.get(entry.id, ())) for entry in missing])


def set_tags(run_id: str, tags: tuple[str, ...]) -> None:
    """Give the run these tags in place of those that it has. Raises: OSError as `add`."""
    with _locked():
        _append([replace(entry, tags=tags) for entry in entries() if entry.id == run_id])


def forget(places: Collection[tuple[str, str]]) -> None:
    """Remove the lines of these (id, folder). Raises: OSError as `add`."""
    if not places:
        return
    with _locked():
        left = [line for line in _lines() if (entry := _entry(line)) is None or (entry.id, entry.folder) not in places]
        write_lines(path(), (f"{line}\n" for line in left))


def _append(new: Iterable[Entry]) -> None:
    lines = "".join(json.dumps(entry.to_dict(), ensure_ascii=False) + "\n" for entry in new)
    if not lines:
        return
    with path().open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else f"\n{lines}"  # behind a line that was cut short
        file.write(lines.encode("utf-8", errors="surrogateescape"))


def _lines() -> Iterator[str]:
    try:
        text = path().read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    yield from filter(None, text.split("\n"))


def _entry(line: str) -> Entry | None:
    try:
        data = parse_json(line, where=path().name)
        return Entry.from_dict(data) if isinstance(data, dict) else None
    except FileFormatError:
        return None


@contextmanager
def _locked() -> Iterator[None]:
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(path().with_name(".runs.lock"), timeout=WAIT_S):
        yield
