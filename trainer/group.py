"""The processes that train one model together, each with a copy of it and its share of the rows: what they exchange.

Not DistributedDataParallel, which sums gradients in the midst of the backward: there a process that runs out of memory
and repeats its step would leave the others waiting. Ours are summed once, when the step's gradients are whole, so that
each process may repeat its own share as often as it must; docs/decisions/0013-several-gpus.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from autoft.units import MIB

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 32 * MIB  # gradients are copied together up to so much, and a larger one goes as it is
# Longest that a process waits for the others: the first of them evaluates alone, and may do that for long
PATIENCE = datetime.timedelta(days=7)


class Group:
    """size: processes; rank: number of this one, from 0. Alone until `join`, and then nothing is exchanged."""

    def __init__(self, size: int = 1, rank: int = 0) -> None:
        self.size = size
        self.rank = rank

    def join(self, port: int, device: str) -> None:
        """Wait for the others, on this machine. port: where a free one of the first process listens."""
        import torch.distributed as dist

        store = dist.TCPStore("localhost", port, self.size, is_master=self.rank == 0, timeout=PATIENCE)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)

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
            flat = _flatten_dense_tensors(parts)
            dist.all_reduce(flat)
            for part, summed in zip(parts, _unflatten_dense_tensors(flat, parts), strict=True):
                part.copy_(summed)

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """[processes, numbers]: what each process has; numbers: of one dtype and shape [numbers] in all."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return numbers[None]
        found = [torch.empty_like(numbers) for _ in range(self.size)]
        dist.all_gather(found, numbers)
        return torch.stack(found)

    def gather_values(self, value: Any) -> list[Any]:
        """Plain values, one of each process."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


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
