"""Which runs are under way on this machine, and on which device: one that still loads holds little of what it will."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoft.errors import FileFormatError
from autoft.home import home, write_text
from autoft.profiles.hardware import Gpu
from autoft.schema import Record, parse_json
from autoft.trainer.job import Job

CPU = "cpu"
ANY_GPU = "gpu"  # the one of a machine that has only one


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim(Record):
    """One run under way. began: when its process began, as psutil tells it, since a pid is given again.

    devices: UUIDs of GPUs, or the names above. num_bytes: that its plan needs of each.
    """

    pid: int
    began: float
    out: str
    devices: tuple[str, ...]
    num_bytes: int

    def missing_bytes(self, gpu: Gpu | None) -> int:
        """What the run will take beside what it holds. gpu: None is the CPU.

        Where the driver does not tell who holds what, all that is free is taken for free.
        """
        if gpu is None:
            try:
                held: int | None = psutil.Process(self.pid).memory_info().rss
            except psutil.Error:
                held = None
        else:
            held = next((process.used_bytes for process in gpu.processes if process.pid == self.pid), 0)
        return 0 if held is None else max(0, self.num_bytes - held)


def devices_of(job: Job, gpus: Sequence[str]) -> tuple[str, ...]:
    """gpus: UUIDs of those that the run will see; empty where there is nothing to choose."""
    return tuple(gpus) or ((ANY_GPU,) if job.device == "cuda" else (CPU,))


@contextmanager
def claimed(out: Path, devices: Sequence[str], num_bytes: int | None) -> Iterator[list[Claim]]:
    """The other runs on these devices; they see this one until the block ends. A home that cannot be written to is no
    reason not to run: then nobody sees it."""
    others = [claim for claim in _claims() if set(claim.devices) & set(devices)]
    mine = Claim(
        pid=os.getpid(),
        began=psutil.Process().create_time(),
        out=str(out),
        devices=tuple(devices),
        num_bytes=num_bytes or 0,
    )
    path = _folder() / f"{mine.pid}.json"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine.to_dict()))
    try:
        yield others
    finally:
        with suppress(OSError):
            path.unlink()


def _claims() -> Iterator[Claim]:
    """Of processes that are still there; what others have left is removed."""
    for path in sorted(_folder().glob("*.json")):
        try:
            claim = Claim.from_dict(parse_json(path.read_bytes(), where=str(path)))
            if psutil.Process(claim.pid).create_time() == claim.began:
                if claim.pid != os.getpid():
                    yield claim
                continue
        except (OSError, FileFormatError, psutil.Error, AttributeError):
            pass
        with suppress(OSError):
            path.unlink()


def _folder() -> Path:
    return home() / "running"
