"""What a run tells while it goes: plain values, so that a display, a log and a test can all listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of the run begins: "model", "evaluate", "train", "save"."""

    name: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step is done. memory_bytes is what the run holds now, in the unit of its prediction."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    seconds_left: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """So many of so many, in a stage that has no steps."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A line that the user should see."""

    text: str


Event = Stage | Step | Progress | Note
Listener = Callable[[Event], None]
