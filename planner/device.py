"""The device that a step is rehearsed for, as far as its kernels ask."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from autoft.units import MIB


def torch_release(version: str) -> tuple[int, int]:
    """(major, minor) of a version of torch, such as "2.14.1+cu130". Raises: ValueError for any other text."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"{version!r} is not a version of torch")
    return int(match[1]), int(match[2])


INSTALLED_TORCH = torch_release(importlib.metadata.version("torch"))


@dataclass(frozen=True, slots=True)
class Device:
    """capability: compute capability of a CUDA card; None is the CPU. multiprocessors: how many the card has.

    torch: release of PyTorch whose kernels run there.
    """

    capability: tuple[int, int] | None
    multiprocessors: int | None = None
    torch: tuple[int, int] = INSTALLED_TORCH

    @property
    def cuda(self) -> bool:
        return self.capability is not None

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of a cuBLAS handle: 4096 KiB twice and 16 KiB 8 times, from Hopper on 32 MiB (but Thor, 11.x).

        parseChosenWorkspaceSize in aten .../cuda/CublasHandlePool.cpp.
        """
        assert self.capability is not None
        return 32 * MIB if self.capability[0] in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024

    @property
    def threads_per_multiprocessor(self) -> int:
        """That are resident at most; CUDA C++ Programming Guide, technical specifications per compute capability."""
        assert self.capability is not None
        if self.capability == (7, 5):
            return 1024
        return 1536 if self.capability in ((8, 6), (8, 7), (8, 9)) or self.capability[0] in (11, 12) else 2048
