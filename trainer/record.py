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

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"event": type(event).__name__.lower(), "at": at, **event.to_dict()}
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:  # a full disk does not end a run
            file.write(json.dumps(line) + "\n")
