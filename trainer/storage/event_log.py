"""The record of a run: `events.jsonl`, a line an event, written as things happen and read while they do."""

from __future__ import annotations

import datetime
import errno
import functools
import json
import math
import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autoft.errors import FileFormatError
from autoft.schema import Record
from autoft.trainer.events import Event, Progress

EVENTS = "events.jsonl"
KINDS: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in typing.get_args(Event)}
BLOCK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Recorded:
    """A line of the record. at: UTC. event: None where this version does not know it. line: as it was written."""

    at: str
    event: Event | None
    line: str


class Recorder:
    """A listener that appends to the record at `path`, whole lines only; Progress is left out.

    A disk that is full or gone does not end the run: what cannot be written is left out, `tell` is called with a
    sentence once, and the next event is tried again. A line that a killed run left half-written is cut off.
    public: takes out of an event what is not to be published.
    """

    def __init__(
        self, path: Path, tell: Callable[[str], None] = lambda _: None, public: Callable[[Any], Any] = lambda data: data
    ) -> None:
        self.path = path
        self._tell = tell
        self._public = public
        self._lost = 0
        self._tail_is_whole = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        try:
            # Opened for each line: the folder may be renamed between two, which an open file forbids on Windows
            with self.path.open("a+b", buffering=0) as file:
                self._append(file, f"{as_line(event, self._public)}\n".encode())
        except OSError as error:
            self._lost += 1
            self._tail_is_whole = False
            if self._lost == 1:
                self._tell(f"{self.path}: not written from here on: {error.strerror or error}; the run goes on")
        else:
            if self._lost:
                self._tell(
                    f"{self.path}: written again, {self._lost} {'event' if self._lost == 1 else 'events'} left out"
                )
            self._lost = 0

    def _append(self, file: IO[bytes], line: bytes) -> None:
        if not self._tail_is_whole:
            file.truncate(_whole_bytes(file))
            self._tail_is_whole = True
        end = file.seek(0, os.SEEK_END)
        if file.write(line) < len(line):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def as_line(event: Event, public: Callable[[Any], Any] = lambda data: data) -> str:
    """The event as a line of the record, without the line's end. A number that is none, or infinite, is null."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    data = {"event": type(event).__name__.lower(), "at": now, **public(event.to_dict())}
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), ensure_ascii=False)


def read_events(path: Path) -> Iterator[Recorded]:
    """The whole lines of the record, in order: what is half-written at its end, or was never a line, is left out.

    Raises: OSError when it cannot be read.
    """
    lines, _ = read_from(path, 0)
    yield from lines


def read_from(path: Path, offset: int) -> tuple[list[Recorded], int]:
    """The whole lines from byte `offset` on, and the offset to go on from. A record that is shorter is a new one.

    Raises: OSError when it cannot be read.
    """
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < offset:
            offset = 0
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    events = (_recorded(line) for line in whole.split(b"\n") if line)
    return [each for each in events if each is not None], offset + len(whole)


def _recorded(line: bytes) -> Recorded | None:
    try:
        text = line.decode()
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("event"), str) or not isinstance(data.get("at"), str):
        return None
    return Recorded(data["at"], event_of(data), text)


def event_of(data: dict[str, Any]) -> Event | None:
    """What the line says, in this version's words: fields that it does not know are left out."""
    kind = KINDS.get(str(data.get("event")))
    if kind is None:
        return None
    try:
        return kind.from_dict(_known(kind, data))
    except FileFormatError:
        return None


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    hints = _hints(kind)
    return {
        name: _known(hints[name], value) if isinstance(value, dict) and _is_record(hints[name]) else value
        for name, value in data.items()
        if name in hints
    }


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Record)


def _whole_bytes(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    begin = file.seek(0, os.SEEK_END)
    while begin > 0:
        begin = max(0, begin - BLOCK_BYTES)
        file.seek(begin)
        at = file.read(BLOCK_BYTES).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
    return 0


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
