"""The random numbers of a run: every generator's state, as plain values and tensors that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, and PyTorch on the CPU and on the GPU in use: a process trains on one of those that it sees."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "python": (version, list(words), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        # A run on the CPU of a machine with a GPU has not started CUDA, and is not to make a context there
        "cuda": [torch.cuda.get_rng_state()] if _cuda_has_started() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Back to what `random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and _cuda_has_started():
        # Checkpoints up to autoft 0.1 hold a state of every GPU that was visible, of which the first was in use
        torch.cuda.set_rng_state(state["cuda"][0])


def _cuda_has_started() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
