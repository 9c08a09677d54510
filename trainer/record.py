"""The record of a run: events.jsonl, a line an event."""

from __future__ import annotations

import datetime
import json
from contextlib import suppress
from pathlib import Path

from autoft.trainer.events import Event, Progress

EVENTS = "events.jsonl"


class Recorder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"event": type(event).__name__.lower(), "at": at, **event.to_dict()}
        written = f"{json.dumps(line)}\n".encode()
        # a full disk does not end a run, and half a line does not stay: of this run, or of one that was killed
        with suppress(OSError), self.path.open("a+b", buffering=0) as file:
            if not self._whole:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            self._whole = False
            end = file.seek(0, 2)
            if file.write(written) < len(written):
                file.truncate(end)
            self._whole = True
