"""The processes that train one model together, each with a copy of it and its share of the rows: what they exchange.

Not DistributedDataParallel, which sums gradients in the midst of the backward: there a process that runs out of memory
and repeats its step would leave the others waiting. Ours are summed once, when the step's gradients are whole, so that
each process may repeat its own share as often as it must; docs/decisions/0013-several-gpus.md.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.trainer.compat.torch import ABORT_GROUP, FLATTEN, UNFLATTEN
from autoft.units import MIB

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 32 * MIB  # gradients are copied together up to so much, and a larger one goes as it is
# Longest that a process waits for the others: the first of them evaluates alone, and may do that for long
PATIENCE = datetime.timedelta(days=7)
# All are on one machine, so nothing of theirs goes over, or listens on, a network
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class LostProcess(RuntimeError):  # noqa: N818
    """One of the processes has ended before its time."""


class Group:
    """size: processes; rank: number of this one, from 0. Nothing is exchanged where there is only one."""

    def __init__(self, size: int = 1, rank: int = 0) -> None:
        self.size = size
        self.rank = rank
        self.trouble: str | None = None  # why one of them has ended before its time
        self._joined = False

    def join(self, rendezvous: Path, device: str, check: Callable[[], None] = lambda: None) -> None:
        """Wait for the others.

        Args:
            rendezvous: a file that only this group knows, and that is not there yet.
            check: called while it waits; what it raises ends the wait.

        Raises: LostProcess where one of them ends meanwhile.
        """
        if self.size == 1:
            return
        failures: list[BaseException] = []
        # In a thread: neither a rendezvous nor the making of NCCL's communicator ends by itself when another process
        # does, and nothing can end them
        meeting = threading.Thread(target=self._meet, args=(rendezvous, device, failures), daemon=True)
        meeting.start()
        while meeting.is_alive():
            self.check()
            check()
            meeting.join(0.1)
        if failures:
            raise failures[0]
        self._joined = True
        self.check()

    def _meet(self, rendezvous: Path, device: str, failures: list[BaseException]) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _world

        # A group's keys in the store begin with its number. An earlier meeting of this process that failed has counted,
        # and the others, which are new, would wait at another number
        _world.group_count = 0
        if sys.platform in _LOOPBACK:
            for setting in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(setting, _LOOPBACK[sys.platform])
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # `lost` does that
        backend, excepthook = "nccl" if device == "cuda" else "gloo", sys.excepthook
        try:
            store = dist.FileStore(str(rendezvous), self.size)  # type: ignore[attr-defined]
            store.set_timeout(PATIENCE)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
            # NCCL makes its communicator at the first exchange
            dist.all_reduce(torch.zeros(1, device=device))
            if device == "cuda":
                torch.cuda.synchronize()
        except BaseException as failure:  # noqa: BLE001 - `join` raises it
            failures.append(failure)
        finally:
            sys.excepthook = excepthook  # PyTorch's own puts a number before every line

    def leave(self) -> None:
        """Exchange nothing any more."""
        if not self._joined:
            return
        self._joined = False
        import torch.distributed as dist

        if dist.is_initialized():
            _end(dist)

    def lost(self, reason: str) -> None:
        """One has ended, as another thread has seen: whoever waits for it is to wait no more."""
        self.trouble = reason
        if not self._joined:
            return
        import torch.distributed as dist

        # gloo sees by itself that a connection is closed, NCCL would wait for ever
        if dist.is_initialized() and dist.get_backend() == "nccl":
            _end(dist)

    def check(self) -> None:
        """Raises: LostProcess where what was exchanged may be no sum of all."""
        if self.trouble is not None:
            raise LostProcess(self.trouble)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The gradient of each becomes the sum of all processes' gradients of it, the same bits in every process."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flatten, unflatten = FLATTEN.fetch(), UNFLATTEN.fetch()
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # of an expert that no row of this share came to
                parameter.grad = torch.zeros_like(parameter)
        grads: list[Any] = [parameter.grad for parameter in trained]
        for together in buffers([(grad.dtype, grad.nbytes) for grad in grads]):
            if len(together) == 1:
                with self._exchange():
                    dist.all_reduce(grads[together[0]])
                continue
            parts = [grads[at] for at in together]
            flat = flatten(parts)
            with self._exchange():
                dist.all_reduce(flat)
            for part, summed in zip(parts, unflatten(flat, parts), strict=True):
                part.copy_(summed)
            del flat, summed  # before the next is made

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """[processes, numbers]: what each process has; numbers: of one dtype and shape [numbers] in all."""
        if self.size == 1:
            return numbers[None]
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(numbers) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(found, numbers)
        return torch.stack(found)

    def gather_values(self, value: Any) -> list[Any]:
        """A plain value of each process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(found, value)
        return found

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """One of them may be lost before it, as another thread sees, and the group is then ended beneath it.

        Raises: LostProcess.
        """
        self.check()
        try:
            yield
        except (RuntimeError, ValueError):
            self.check()
            raise


def _end(dist: Any) -> None:
    """NCCL's own way out waits for the others, of which one may be gone."""
    if dist.get_backend() == "nccl":
        ABORT_GROUP.fetch()()
    else:
        dist.destroy_process_group()


def buffers(gradients: Sequence[tuple[Any, int]]) -> list[list[int]]:
    """Which gradients, by number, are summed in one go: neighbours of one dtype, up to BUFFER_BYTES.

    gradients: (dtype, bytes) of each.
    """
    found: list[list[int]] = []
    for _, run in groupby(enumerate(gradients), key=lambda each: each[1][0]):
        filled = 0
        for at, (_, size) in run:
            if not filled or filled + size > BUFFER_BYTES:
                found.append([])
                filled = 0
            found[-1].append(at)
            filled += size
    return found
