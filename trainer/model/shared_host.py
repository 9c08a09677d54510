"""Buffers in the host's memory that all processes of a run on this machine see: a streamed base is there once.

The first process makes and fills them, the others map them. Nothing of them is left when the last process has ended,
however it ends: they are files without a name (memfd_create), which the others open by /proc.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from autoft.errors import ModelError
from autoft.home import write_text

LOOKS_EVERY_S = 0.05


class SharedHost:
    """folder: that only the run's processes know. first: whether this process is the one that fills the buffers."""

    def __init__(self, folder: Path, *, first: bool) -> None:
        self.folder = folder
        self.first = first
        self._files: dict[str, int] = {}

    def buffers(self, name: str, sizes: Sequence[int]) -> list[torch.Tensor]:
        """uint8 tensors of so many bytes, each on memory pages of its own.

        In the first process they are empty until it has filled them and called `publish`, for which the others wait.
        Raises: ModelError where the first process has other sizes: its model is not the same.
        """
        starts, total = [], 0
        for size in sizes:
            starts.append(total)
            total += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if not total:
            return [torch.empty(0, dtype=torch.uint8) for _ in sizes]
        whole = torch.frombuffer(
            self._made(name, total) if self.first else self._opened(name, sizes), dtype=torch.uint8
        )
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def publish(self, name: str, buffers: Sequence[torch.Tensor]) -> None:
        """What is in these, which `buffers` has made by that name, is there for the others."""
        if name in self._files:
            about = {"pid": os.getpid(), "file": self._files[name], "sizes": [len(buffer) for buffer in buffers]}
            write_text(self._about(name), json.dumps(about))

    def close(self) -> None:
        """All have opened what they need: its memory goes when nothing uses it any more."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _about(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _made(self, name: str, total: int) -> mmap.mmap:
        self._files[name] = os.memfd_create(f"autoft-{name}")
        os.truncate(self._files[name], total)
        return mmap.mmap(self._files[name], total)

    def _opened(self, name: str, sizes: Sequence[int]) -> mmap.mmap:
        while not self._about(name).exists():  # a first process that ends takes this one with it
            time.sleep(LOOKS_EVERY_S)
        about = json.loads(self._about(name).read_text(encoding="utf-8"))
        if about["sizes"] != list(sizes):
            raise ModelError(f"{name} of the streamed base: not what the first process has", fix="run again")
        file = os.open(f"/proc/{about['pid']}/fd/{about['file']}", os.O_RDWR)
        try:
            return mmap.mmap(file, 0)
        finally:
            os.close(file)
