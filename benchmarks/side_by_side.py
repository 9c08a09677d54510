"""Runs side by side on one GPU, as many as it has room for, and the weights of their models, as the disk has."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

from shapes import write_weights

GIB = 2**30
SPARE_BYTES = 2 * GIB  # of the card, beside what its runs are told to take


class SideBySide:
    """jobs: how many runs at once. room_bytes: of the card, for all of them."""

    def __init__(self, jobs: int, room_bytes: float = math.inf) -> None:
        self.room_bytes = room_bytes - SPARE_BYTES
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._running: dict[Future[None], tuple[int, str]] = {}

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=value is not None)
        if value is None:
            for future in self._running:
                future.result()

    @property
    def shapes(self) -> set[str]:
        """Of the models that are in use."""
        return {shape for _, shape in self._running.values()}

    def start(self, needed_bytes: int, shape: str, work: Callable[[], None]) -> None:
        """Have `work` done, when there is room for it."""
        while len(self._running) >= self._jobs or (self._running and self._taken() + needed_bytes > self.room_bytes):
            self.wait_for_one()
        self._running[self._pool.submit(work)] = (needed_bytes, shape)

    def wait_for_one(self) -> bool:
        """Wait until a run ends; False when there is none. Raises: what it raised."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            del self._running[future]
            future.result()
        return bool(done)

    def _taken(self) -> int:
        return sum(needed_bytes for needed_bytes, _ in self._running.values())


class Weights:
    """Folders of random weights, made when they are needed; old ones go when the disk is full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, shape: str, params: int, running: SideBySide) -> Path:
        """The folder of a shape with so many parameters; those of the shapes that are running stay."""
        folder = self.folder / shape
        while not folder.exists() and shutil.disk_usage(self.folder).free < 1.1 * 2 * params:
            old = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
            unused = [path for path in old if path.name not in running.shapes]
            if unused:
                shutil.rmtree(unused[0])
            elif not running.wait_for_one():
                break
        write_weights(shape, folder)
        os.utime(folder)
        return folder
