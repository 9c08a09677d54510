"""The processes that train one model together, each with a copy of it and its share of the rows: what they exchange.

Not DistributedDataParallel, which sums gradients in the midst of the backward: there a process that runs out of memory
and repeats its step would leave the others waiting. Ours are summed once, when the step's gradients are whole, so that
each process may repeat its own share as often as it must; docs/decisions/0013-several-gpus.md.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    def join(self, rendezvous: Path, device: str) -> None:
        """Wait for the others. rendezvous: a file that only this group knows, and that is not there yet."""
        import torch.distributed as dist

        if self.size == 1:
            return
        if sys.platform in _LOOPBACK:
            for setting in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(setting, _LOOPBACK[sys.platform])
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # `lost` does that
        store = dist.FileStore(str(rendezvous), self.size)  # type: ignore[attr-defined]
        store.set_timeout(PATIENCE)
        backend, excepthook = "nccl" if device == "cuda" else "gloo", sys.excepthook
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        sys.excepthook = excepthook  # PyTorch's own puts a number before every line

    def leave(self) -> None:
        """Exchange nothing any more."""
        if self.size == 1:
            return
        import torch.distributed as dist

        if dist.is_initialized():
            _end(dist)

    def lost(self, reason: str) -> None:
        """One has ended, as another thread has seen: whoever waits for it is to wait no more."""
        self.trouble = reason
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
        from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # of an expert that no row of this share came to
                parameter.grad = torch.zeros_like(parameter)
        grads: list[Any] = [parameter.grad for parameter in trained]
        for together in buffers([(grad.dtype, grad.nbytes) for grad in grads]):
            if len(together) == 1:
                dist.all_reduce(grads[together[0]])
                continue
            parts = [grads[at] for at in together]
            flat = _flatten_dense_tensors(parts)  # type: ignore[no-untyped-call]
            dist.all_reduce(flat)
            for part, summed in zip(parts, _unflatten_dense_tensors(flat, parts), strict=True):  # type: ignore[no-untyped-call]
                part.copy_(summed)
            del flat, summed  # before the next is made

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """[processes, numbers]: what each process has; numbers: of one dtype and shape [numbers] in all."""
        if self.size == 1:
            return numbers[None]
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(numbers) for _ in range(self.size)]
        dist.all_gather(found, numbers)
        return torch.stack(found)

    def gather_values(self, value: Any) -> list[Any]:
        """A plain value of each process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


def _end(dist: Any) -> None:
    """NCCL's own way out waits for the others, of which one may be gone."""
    if dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
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
