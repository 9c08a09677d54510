"""The device that a step is rehearsed for, as far as its kernels ask."""

from __future__ import annotations

from dataclasses import dataclass

from autoft.units import MIB


@dataclass(frozen=True, slots=True)
class Device:
    """capability: compute capability of a CUDA card; None is the CPU. multiprocessors: how many the card has."""

    capability: tuple[int, int] | None
    multiprocessors: int | None = None

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
