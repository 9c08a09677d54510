"""A Triton kernel, in a module of its own: Triton reads its source and its names from there when it runs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def double(source, target, length, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """target = 2 * source, of so many numbers, in one block."""
    offsets = tl.arange(0, BLOCK)
    inside = offsets < length
    tl.store(target + offsets, 2 * tl.load(source + offsets, mask=inside), mask=inside)
