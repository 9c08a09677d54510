"""What CUDA's reductions take beside their result: blocks that share an output add their parts in global memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from autoft.planner.kernels.rules import Device

MAX_THREADS = 512  # of a block; Reduce.cuh, mnt_wrapper
WARP = 32
VECTOR = 4  # values of one load
LEAST_VALUES, MOST_VALUES = 16, 256  # of a thread


def reduction_scratch(device: Device, x: torch.Tensor, dims: Any = None, *_: Any, **__: Any) -> list[int]:
    """Bytes of parts in float32 and of the blocks' semaphores, for a sum of `x` over `dims`; none where none share.

    setReduceConfig and global_memory_size of torch 2.14, aten/src/ATen/native/cuda/Reduce.cuh. Leaves out: inputs
    beyond 32-bit indices, which are added in pieces.
    """
    if device.multiprocessors is None or not x.numel():
        return []
    wanted = {dim % x.ndim for dim in _listed(dims)} if x.ndim else set()
    reduced = _joined((x.size(dim), x.stride(dim)) for dim in range(x.ndim) if dim in wanted or not wanted)
    kept = _joined((x.size(dim), x.stride(dim)) for dim in range(x.ndim) if wanted and dim not in wanted)
    outputs, inputs = (math.prod(size for size, _ in group) for group in (kept, reduced))
    along = not kept or (bool(reduced) and reduced[0][1] < kept[0][1])  # the reduced dimension is the fastest one
    fastest = reduced if along else kept
    vector, (width, height) = 1, (inputs, outputs) if along else (outputs, inputs)
    if fastest and fastest[0][1] == 1:
        if along and width >= 128 and len(reduced) == 1:
            width //= VECTOR
        elif not along:
            vector = _output_vector(kept, reduced)
            width //= vector
    width, height = _block(width, height, MAX_THREADS // vector)
    step_in, step_out = (width, 1) if along else (1, width)
    if -(-inputs // step_in) < min(16 * height, MOST_VALUES):
        return []  # each warp has an output of its own
    step_in *= height
    values = -(-inputs // step_in)
    grid = -(-outputs // vector // step_out)
    most_blocks = device.multiprocessors * (device.threads_per_multiprocessor // (width * height))
    if values < MOST_VALUES or grid > most_blocks:
        return []
    sharing = min(max(-(-most_blocks // grid), -(-values // MOST_VALUES)), -(-values // LEAST_VALUES))
    if sharing <= 1:
        return []
    return [4 * outputs * sharing * (1 if along else width * vector), 4 * grid]


def _listed(dims: Any) -> Sequence[int]:
    if dims is None:
        return ()
    return (dims,) if isinstance(dims, int) else dims


def _joined(dims: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(size, stride) from the fastest on, neighbours that make one run joined; TensorIterator's coalesce_dimensions."""
    joined: list[tuple[int, int]] = []
    for size, stride in sorted((dim for dim in dims if dim[0] > 1), key=lambda dim: dim[1]):
        if joined and joined[-1][0] * joined[-1][1] == stride:
            joined[-1] = joined[-1][0] * size, joined[-1][1]
        else:
            joined.append((size, stride))
    return joined


def _output_vector(kept: list[tuple[int, int]], reduced: list[tuple[int, int]]) -> int:
    """How many neighbouring outputs a thread loads at once; get_output_vec_size. The allocator aligns the address."""
    vector = VECTOR
    for number in (kept[0][0], *(stride for _, stride in (*kept[1:], *reduced))):
        while number % vector:
            vector //= 2
    return vector


def _block(width: int, height: int, threads: int) -> tuple[int, int]:
    """Threads of a block along both; set_block_dimension."""
    widest, highest = (1 << (min(side, threads).bit_length() - 1) for side in (width, height))
    wide = min(widest, WARP)
    high = min(highest, threads // wide)
    return min(widest, threads // high), high
