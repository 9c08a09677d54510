"""How much memory does a rehearsed run take? Its events replayed through the device's allocator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoft.planner.memory.allocator import Allocator, ByteCounter, OutOfMemory
from autoft.planner.rehearsal.layers import pairs
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.tracing.trace import KINDS

OTHER_KEYS = 2**40  # an evaluation's keys are its own, whatever is still held when it begins


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. allocated, reserved: peaks of the steady step. highest_reserved: of the whole run, loading included.

    phases: peak allocated of each. components: what lives at the peak of the steady step; they add up to allocated,
    "rounding" being what blocks take beyond what was asked for.
    retries: how often in the steady step cached blocks go back to the device, to stay under a limit; given_back: how
    much, in all.
    """

    allocated: int
    reserved: int
    highest_reserved: int
    phases: dict[str, int]
    components: dict[str, int]
    retries: int = 0
    given_back: int = 0


def replay(rehearsal: Rehearsal, allocator: Allocator | ByteCounter) -> Memory:
    """The peaks of `rehearsal`. Raises: OutOfMemory when the allocator has a limit that it does not keep to."""
    phases: dict[str, int] = {}
    highest = allocated = reserved = 0
    peak = (rehearsal.steady, 0)
    before = (0, 0)
    for number, phase in enumerate(rehearsal.phases):
        if number == rehearsal.steady:
            before = (allocator.retries, allocator.freed_in_retries)
        allocator.reset_peaks()
        place = allocator.run(pairs(phase.events))
        steady = number >= rehearsal.steady
        if steady and allocator.peak_allocated > allocated:
            # where no event takes it higher than it was before, the phase begins with the peak
            allocated, peak = allocator.peak_allocated, (number, -1 if place is None else place)
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
    retries, given_back = allocator.retries - before[0], allocator.freed_in_retries - before[1]
    phases["save"] = allocator.allocated  # the adapter is copied to the host
    for number, extension in enumerate(rehearsal.evaluation.values(), 1):
        allocator.reset_peaks()
        allocator.run(pairs(extension.events - np.array([number * OTHER_KEYS, 0])))
        highest = max(highest, allocator.peak_reserved)
        phases["evaluation"] = max(phases.get("evaluation", 0), allocator.peak_allocated)
    components = _at_peak(rehearsal, *peak, allocated)
    return Memory(allocated, reserved, highest, phases, components, retries, given_back)


def _at_peak(rehearsal: Rehearsal, phase: int, place: int, allocated: int) -> dict[str, int]:
    """Bytes by kind after the given event of the given phase."""
    before = [p.events for p in rehearsal.phases[:phase]]
    events = np.concatenate((*before, rehearsal.phases[phase].events[: place + 1]))
    kinds = rehearsal.kinds[events[:, 0]]
    living = np.bincount(kinds, weights=events[:, 1], minlength=len(KINDS))
    by_kind = {name: int(size) for name, size in zip(KINDS, living, strict=True) if size > 0}
    return {**by_kind, "rounding": allocated - sum(by_kind.values())}


def squeezed(rehearsal: Rehearsal, allocator: Allocator | ByteCounter) -> Memory | None:
    """The peaks under the allocator's limit; None where the run does not stay under it."""
    try:
        return replay(rehearsal, allocator)
    except OutOfMemory:
        return None


def least_bytes(rehearsal: Rehearsal) -> int:
    """The most that lives at once: no allocator, whatever it gives back, does the run with less."""
    sizes = np.concatenate([phase.events[:, 1] for phase in rehearsal.phases])
    steps = np.cumsum(sizes)
    evaluations = [np.cumsum(extension.events[:, 1]).max() for extension in rehearsal.evaluation.values()]
    return int(max(steps.max(), steps[-1] + max(evaluations, default=0)))
