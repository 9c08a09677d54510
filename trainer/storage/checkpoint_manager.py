"""When a run writes a checkpoint, which ones stay, and what happens when the disk takes no more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoft.trainer.events import Listener, Note, Saved
from autoft.trainer.job import Job
from autoft.trainer.storage.checkpoint import Checkpoint, newest_checkpoint, retain, write_checkpoint
from autoft.trainer.storage.ownership import CHECKPOINTS
from autoft.trainer.storage.progress import Progress


class Keeper:
    """The checkpoints of one run, in the folder `checkpoints` of its own.

    run_id, identity: as `write_checkpoint` takes them. latest: the newest whole one.
    """

    def __init__(
        self,
        folder: Path,
        job: Job,
        progress: Progress,
        *,
        run_id: str,
        identity: dict[str, Any],
        listener: Listener,
    ) -> None:
        self.folder = folder / CHECKPOINTS
        self.job = job
        self.progress = progress
        self.run_id = run_id
        self.identity = identity
        self.listener = listener
        self.latest: Checkpoint | None = None
        self.trouble: str | None = None  # why the last one could not be written
        self._saved_at = time.monotonic()

    @property
    def next_save_s(self) -> float:
        """Seconds until the next one by time."""
        return max(0.0, 60 * self.job.save_minutes - (time.monotonic() - self._saved_at))

    def due(self, step: int, *, best: bool) -> bool:
        """Whether one is to be written now. best: an evaluation has just found the best weights so far."""
        if self.latest is not None and self.latest.step == step:
            return False
        every = self.job.save_steps
        return best or self.next_save_s == 0 or (every is not None and step % every == 0)

    def save(self, state: dict[str, Any], texts: Mapping[str, str]) -> bool:
        """Write one of progress.step; whether the disk took it. A full disk is told of, and tried again next time."""
        if self.latest is not None and self.latest.step == self.progress.step:
            return True
        began = time.monotonic()
        for last_try in (False, True):
            try:
                self.latest, size = write_checkpoint(
                    self.folder, self.progress.step, state, texts, run_id=self.run_id, identity=self.identity
                )
                break
            except OSError as error:
                self.trouble = error.strerror or str(error)
                if last_try or not self._free_room():
                    self._saved_at = time.monotonic()
                    self._tell_of_trouble()
                    return False
        self.trouble = None
        self._saved_at = time.monotonic()
        best = self.progress.best_step
        retain(self.folder, self.job.keep_checkpoints, [] if best is None else [best])
        self.listener(Saved(step=self.progress.step, bytes=size, seconds=round(self._saved_at - began, 3)))
        return True

    def _free_room(self) -> bool:
        """Remove all but the newest whole checkpoint; whether there was anything to remove."""
        newest, _ = newest_checkpoint(self.folder, run_id=self.run_id)
        if newest is None:
            return False
        before = len(list(self.folder.iterdir()))
        best = self.progress.best_step
        also = [newest.step] if best is None else [newest.step, best]
        retain(self.folder, 0, also)
        return len(list(self.folder.iterdir())) < before

    def _tell_of_trouble(self) -> None:
        kept = "no checkpoint is there yet" if self.latest is None else f"the one of step {self.latest.step} stays"
        text = (
            f"step {self.progress.step}: no checkpoint could be written ({self.trouble}); {kept}, and the run goes on"
        )
        self.progress.events.append({"event": "note", "text": text, "warning": True})
        self.listener(Note(text=text, warning=True))
