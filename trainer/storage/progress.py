"""How far a run is, and what it has seen: what a checkpoint keeps beside the weights, and the result is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from autoft.trainer.job import Job
from autoft.trainer.result import Evaluation


def _nothing() -> float:
    return 0.0


@dataclass(slots=True)
class Progress:
    """Of all its parts, restarts included.

    losses: (step, loss). memory: (step, bytes held after it). tokens, trained_tokens: of all micro-batches; padded
    tokens: padding counted too. seconds: of training steps, of which `timed_steps` were timed.
    evaluations: (step, evaluation) during training; before: the one before it, and its answers. best_step: of the best
    of them; since_best: worse ones after it.
    stages: seconds of each stage. energy_j: what the GPUs drew; None where it is not known of some time.
    events: what happened, as in events.jsonl.
    """

    step: int = 0
    total_steps: int | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0
    trained_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    timed_steps: int = 0
    peak_reserved_bytes: int | None = None
    evaluations: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    before: dict[str, Any] | None = None
    best_step: int | None = None
    since_best: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    _stage: tuple[str, float] | None = None  # that is going on, and the time up to which it is counted
    _take_joules: Callable[[], float | None] = _nothing

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        self.settle()
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to when `state` was made; the time and energy that this process has taken to come there is added."""
        self.settle()
        stages, energy_j = self.stages, self.energy_j
        for name, value in state.items():
            setattr(self, name, value)
        names = {**self.stages, **stages}
        self.stages = {name: self.stages.get(name, 0.0) + stages.get(name, 0.0) for name in names}
        self.energy_j = None if self.energy_j is None or energy_j is None else self.energy_j + energy_j

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time of the block is that of this stage."""
        self._stage = name, time.perf_counter()
        try:
            yield
        finally:
            self.settle()
            self._stage = None

    @contextmanager
    def energy(self, take_joules: Callable[[], float | None]) -> Iterator[None]:
        """What is drawn in the block is counted. take_joules: what was drawn since it was last asked."""
        self.energy_j, self._take_joules = 0.0, take_joules
        try:
            yield
        finally:
            self.settle()
            self._take_joules = _nothing

    def settle(self) -> None:
        """Count time and energy up to now."""
        if self._stage is not None:
            name, since = self._stage
            now = time.perf_counter()
            self.stages[name] = self.stages.get(name, 0.0) + now - since
            self._stage = name, now
        if self.energy_j is not None:
            joules = self._take_joules()
            self.energy_j = None if joules is None else self.energy_j + joules

    def is_done(self, job: Job) -> bool:
        """Whether there is nothing left to train."""
        if job.early_stopping is not None and self.since_best >= job.early_stopping:
            return True
        return self.total_steps is not None and self.step >= self.total_steps

    def saw_reserved(self, reserved_bytes: int | None) -> None:
        """The most that PyTorch held of a GPU while training."""
        if reserved_bytes is not None:
            self.peak_reserved_bytes = max(self.peak_reserved_bytes or 0, reserved_bytes)

    def saw_peak(self, phase: str, peak_bytes: int) -> None:
        """The most that was held in `phase`, this time or an earlier one."""
        self.phases[phase] = max(self.phases.get(phase, 0), peak_bytes)

    def evaluated(self) -> tuple[tuple[int, Evaluation], ...]:
        """evaluations, as the result has them."""
        return tuple((step, Evaluation.from_dict(evaluation)) for step, evaluation in self.evaluations)
