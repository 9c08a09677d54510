"""How much memory does a rehearsed run take? Its events replayed through the device's allocator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoft.planner.allocator import Allocator, ByteCounter, OutOfMemory
from autoft.planner.ghost import Rehearsal
from autoft.planner.trace import KINDS


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. allocated, reserved: peaks of the steady step. highest_reserved: of the whole run, loading included.

    phases: peak allocated of each. components: what lives at the peak of the steady step; they add up to allocated,
    "rounding" being what blocks take beyond what was asked for.
    """

    allocated: int
    reserved: int
    highest_reserved: int
    phases: dict[str, int]
    components: dict[str, int]


def replay(rehearsal: Rehearsal, allocator: Allocator | ByteCounter) -> Memory:
    """The peaks of `rehearsal`. Raises: OutOfMemory when the allocator has a limit that it does not keep to."""
    phases: dict[str, int] = {}
    highest = allocated = 0
    peak_phase = rehearsal.steady
    for number, phase in enumerate(rehearsal.phases):
        allocator.reset_peaks()
        malloc, free = allocator.malloc, allocator.free
        for key, size in phase.events:
            if size > 0:
                malloc(key, size)
            else:
                free(key)
        highest = max(highest, allocator.peak_reserved)
        if phase.empty_cache:
            allocator.empty_cache()
        name = phase.name
        if number >= rehearsal.steady:
            phases[name] = max(phases.get(name, 0), allocator.peak_allocated)
            if allocator.peak_allocated > allocated:
                allocated, peak_phase = allocator.peak_allocated, number
        elif phase.name == "load":
            phases["load"] = allocator.peak_allocated
        else:
            phases["first_step"] = max(phases.get("first_step", 0), allocator.peak_allocated)
    # PyTorch keeps what it has reserved: from the steady step's end on nothing is given back
    return Memory(
        allocated,
        max(allocator.reserved, allocator.peak_reserved),
        highest,
        phases,
        _at_peak(rehearsal, peak_phase, allocated),
    )


def _at_peak(rehearsal: Rehearsal, phase: int, allocated: int) -> dict[str, int]:
    """Bytes by kind where the given phase is highest."""
    before = [event for p in rehearsal.phases[:phase] for event in p.events]
    events = np.array([*before, *rehearsal.phases[phase].events], dtype=np.int64)
    sizes = events[:, 1]
    peak = len(before) + int(np.argmax(np.cumsum(sizes)[len(before) :]))
    kinds = np.asarray(rehearsal.kinds)[events[: peak + 1, 0]]
    living = np.bincount(kinds, weights=sizes[: peak + 1], minlength=len(KINDS))
    found = {name: int(size) for name, size in zip(KINDS, living, strict=True) if size > 0}
    return {**found, "rounding": allocated - sum(found.values())}


def survives(rehearsal: Rehearsal, allocator: Allocator | ByteCounter) -> bool:
    """Whether the run stays under the allocator's limit."""
    try:
        replay(rehearsal, allocator)
    except OutOfMemory:
        return False
    return True
