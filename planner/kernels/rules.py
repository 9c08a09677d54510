"""The device that a step is rehearsed for, as far as its kernels ask."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from autoft.profiles.architectures import Architecture, architecture


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
    def architecture(self) -> Architecture:
        assert self.capability is not None
        return architecture(self.capability)

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of a cuBLAS handle."""
        return self.architecture.cublas_workspace_bytes

    @property
    def threads_per_multiprocessor(self) -> int:
        """That are resident at most."""
        return self.architecture.threads_per_multiprocessor
