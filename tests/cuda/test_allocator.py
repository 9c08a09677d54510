"""planner/memory/allocator.py and PyTorch's allocator count the same after each allocation and free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoft.planner.kernels.rules import INSTALLED_TORCH
from autoft.planner.memory.allocator import Allocator, OutOfMemory

SCRIPT = Path(__file__).parent / "allocations.py"
EVENTS = 1500
OLDER_FIRST = INSTALLED_TORCH >= (2, 13)
GIB = 2**30


class Recorded:
    """Where the driver put segments, one after another."""

    def __init__(self, segments: list[tuple[int, int]]) -> None:
        self._left = segments[::-1]

    def reserve(self, size: int, multiple: int) -> int:
        address, real_size = self._left.pop()
        assert size == real_size
        return address


def counted(allocator: Allocator) -> list[int]:
    return [
        allocator.allocated,
        allocator.reserved,
        allocator.requested,
        allocator.peak_allocated,
        allocator.peak_reserved,
        allocator.retries,
    ]


def repeat(events: list[Any], allocator: Allocator, *, addresses: bool = True) -> None:
    for number, (what, key, size, real, address) in enumerate(events):
        if what == "malloc":
            allocator.malloc(key, size)
        elif what == "free":
            allocator.free(key)
        elif what == "full":
            with pytest.raises(OutOfMemory):
                allocator.malloc(key, size)
        else:
            allocator.empty_cache()
        assert counted(allocator) == real, f"event {number}: {what} {size}"
        if addresses and what == "malloc":
            assert allocator.address(key) == address, f"event {number}: {what} {size}"


@pytest.mark.parametrize("limit", [0, 4 * GIB], ids=["unlimited", "4 GiB"])
@pytest.mark.parametrize("seed", range(3))
def test_it_counts_as_pytorch_does_after_every_event(on_card, seed, limit):
    done = on_card("a100").python(SCRIPT, seed, EVENTS, "", limit)
    assert done.code == 0, done.err
    real = json.loads(done.out.splitlines()[-1])
    assert {what for what, *_ in real["events"]} >= {"malloc", "free", "empty", *(["full"] if limit else [])}
    addresses = Recorded(real["segments"])
    repeat(real["events"], Allocator(limit_bytes=limit or None, addresses=addresses, older_first=OLDER_FIRST))


@pytest.mark.parametrize("seed", range(3))
def test_it_counts_as_pytorch_does_where_segments_expand(on_card, seed):
    done = on_card("a100").python(SCRIPT, seed, EVENTS, "expandable_segments:True", 0)
    assert done.code == 0, done.err
    real = json.loads(done.out.splitlines()[-1])
    assert real["segments"] == []  # none by cudaMalloc
    repeat(real["events"], Allocator(expandable_segments=True), addresses=False)
