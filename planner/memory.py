"""How much memory does a rehearsed run take? Its events replayed through the device's allocator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoft.planner.allocator import Allocator, ByteCounter, OutOfMemory
from autoft.planner.depth import pairs
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
    highest = allocated = reserved = 0
    peak = (rehearsal.steady, 0)
    for number, phase in enumerate(rehearsal.phases):
        allocator.reset_peaks()
        malloc, free = allocator.malloc, allocator.free
        steady = number >= rehearsal.steady
        for place, (key, size) in enumerate(pairs(phase.events)):
            if size > 0:
                malloc(key, size)
                if steady and allocator.allocated > allocated:
                    allocated, peak = allocator.allocated, (number, place)
            else:
                free(key)
        highest = max(highest, allocator.peak_reserved)
        if phase.empty_cache:
            allocator.empty_cache()
        name = phase.name
        if steady:
            phases[name] = max(phases.get(name, 0), allocator.peak_allocated)
            reserved = max(reserved, allocator.peak_reserved)
        elif phase.name == "load":
            phases["load"] = max(phases.get("load", 0), allocator.peak_allocated)
        else:
            phases["first_step"] = max(phases.get("first_step", 0), allocator.peak_allocated)
    phases["save"] = allocator.allocated  # the adapter is copied to the host
    for name, extension in rehearsal.evaluation.items():
        allocator.reset_peaks()
        for key, size in pairs(extension.events):
            if size > 0:
                allocator.malloc((name, key), size)
            else:
                allocator.free((name, key))
        highest = max(highest, allocator.peak_reserved)
        phases["evaluation"] = max(phases.get("evaluation", 0), allocator.peak_allocated)
    return Memory(allocated, reserved, highest, phases, _at_peak(rehearsal, *peak, allocated))


def _at_peak(rehearsal: Rehearsal, phase: int, place: int, allocated: int) -> dict[str, int]:
    """Bytes by kind after the given event of the given phase."""
    before = [p.events for p in rehearsal.phases[:phase]]
    events = np.concatenate((*before, rehearsal.phases[phase].events[: place + 1]))
    kinds = rehearsal.kinds[events[:, 0]]
    living = np.bincount(kinds, weights=events[:, 1], minlength=len(KINDS))
    found = {name: int(size) for name, size in zip(KINDS, living, strict=True) if size > 0}
    return {**found, "rounding": allocated - sum(found.values())}


def survives(rehearsal: Rehearsal, allocator: Allocator | ByteCounter) -> bool:
    """Whether the run stays under the allocator's limit."""
    try:
        replay(rehearsal, allocator)
    except OutOfMemory:
        return False
    return True
