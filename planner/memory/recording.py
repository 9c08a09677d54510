"""What lives when: a rehearsed run replayed with allocated and reserved bytes noted after every event."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np

from autoft.planner.memory.allocator import Allocator, ByteCounter
from autoft.planner.rehearsal.layers import Ints, pairs
from autoft.planner.rehearsal.loop import Phase
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.tracing.trace import KINDS

# In words, the sections that no layer has
SECTIONS = {"embed": "embedding", "head": "head and loss", "loss_backward": "loss and head", "end": "", "after": ""}


@dataclass(frozen=True, slots=True)
class Recording:
    """Events of all phases, one after another. keys, sizes: of each. starts: first event of each phase, then the end.

    rehearsal: with the evaluation's pieces as phases behind the steps. end: number of the first of them.
    allocated, reserved: bytes after each event. marks: (first event, name, layer) of each section.
    """

    rehearsal: Rehearsal
    end: int
    keys: Ints
    sizes: Ints
    starts: list[int]
    allocated: Ints
    reserved: Ints
    marks: list[tuple[int, str, int | None]]

    def group(self, phase: int) -> str:
        """The part of the run that a phase belongs to, under the names of `Estimate.phases` where it has one."""
        name = self.rehearsal.phases[phase].name
        if phase >= self.end:
            return "evaluation"
        if phase >= self.rehearsal.steady:
            return "steady_step"
        return name if name == "load" else "first_step"

    def phase_of(self, event: int) -> int:
        """Number of the phase in which the event is."""
        return bisect_right(self.starts, event) - 1

    def peak(self, phases: list[int]) -> int:
        """The first event after which most is allocated in these phases, what they begin with included."""
        ranges = [(max(0, self.starts[p] - 1), self.starts[p + 1]) for p in phases]
        highest = [start + int(np.argmax(self.allocated[start:stop])) for start, stop in ranges]
        return max(highest, key=lambda event: (self.allocated[event], -event))

    def steady_peak(self) -> int:
        """Where the steady step needs most: what the Estimate's components describe."""
        start, stop = self.starts[self.rehearsal.steady], self.starts[self.end]
        return start + int(np.argmax(self.allocated[start:stop]))

    def living(self, event: int) -> Ints:
        """Places, among the events, of the allocations that live after the event."""
        keys, sizes = self.keys[: event + 1], self.sizes[: event + 1]
        freed = np.zeros(len(self.rehearsal.kinds), dtype=bool)
        freed[keys[sizes < 0]] = True
        return np.flatnonzero((sizes > 0) & ~freed[keys])

    def components(self, event: int) -> dict[str, int]:
        """Bytes by kind after the event; "rounding" is what blocks take beyond what was asked for."""
        places = self.living(event)
        kinds = self.rehearsal.kinds[self.keys[places]]
        by_kind = {
            name: int(self.sizes[places][kinds == number].sum())
            for number, name in enumerate(KINDS)
            if (kinds == number).any()
        }
        return {**by_kind, "rounding": int(self.allocated[event]) - sum(by_kind.values())}

    def section(self, event: int) -> tuple[str, int | None]:
        """(name, layer) of the section of the step in which the event is; ("", None) where there is none."""
        number = bisect_right(self.marks, event, key=lambda mark: mark[0]) - 1
        if number < 0 or self.marks[number][0] < self.starts[self.phase_of(event)]:
            return "", None
        return self.marks[number][1:]

    def where(self, event: int) -> str:
        """In words: "steady step, backward, layer 12"."""
        phase = self.phase_of(event)
        group, name = self.group(phase), self.rehearsal.phases[phase].name
        section, layer = self.section(event)
        words = [group.replace("_", " "), name if name != group else ""]
        words.append(f"layer {layer}" if layer is not None else SECTIONS.get(section, ""))
        return ", ".join(filter(None, words))


def record(rehearsal: Rehearsal, allocator: Allocator | ByteCounter) -> Recording:
    """Replay `rehearsal` through an empty allocator without limit."""
    end = len(rehearsal.phases)
    rehearsal = _with_evaluation(rehearsal)
    events = np.concatenate([phase.events for phase in rehearsal.phases])
    allocated, reserved = np.empty(len(events), dtype=np.int64), np.empty(len(events), dtype=np.int64)
    starts, marks = [0], []
    place = 0
    for phase in rehearsal.phases:
        marks += [(place + first, name, layer) for first, name, layer in phase.marks]
        for key, size in pairs(phase.events):
            if size > 0:
                allocator.malloc(key, size)
            else:
                allocator.free(key)
            allocated[place], reserved[place] = allocator.allocated, allocator.reserved
            place += 1
        if phase.empty_cache:
            allocator.empty_cache()
        starts.append(place)
    return Recording(rehearsal, end, events[:, 0], events[:, 1], starts, allocated, reserved, marks)


def _with_evaluation(rehearsal: Rehearsal) -> Rehearsal:
    phases, kinds, makers = list(rehearsal.phases), [rehearsal.kinds], list(rehearsal.makers)
    offset = len(rehearsal.kinds)
    for name, extension in rehearsal.evaluation.items():
        phases.append(Phase(name, extension.events + np.array([offset, 0]), marks=extension.marks))
        kinds.append(extension.kinds)
        makers.append((offset, extension))
        offset += len(extension.kinds)
    return replace(rehearsal, phases=phases, kinds=np.concatenate(kinds), makers=makers, evaluation={})
