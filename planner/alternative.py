"""A recipe that was not chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoft.planner.estimate import Estimate
from autoft.schema import Record
from autoft.trainer.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative(Record):
    """A recipe that was not chosen. fallback: it fits in less memory than the chosen one. num_gpus: that it was for.

    time_ratio: of a row, over that of the chosen one; None where it was not compared.
    """

    role: Literal["fallback", "runner_up", "rejected"]
    recipe: Recipe
    estimate: Estimate
    reason: str
    num_gpus: int = 1
    time_ratio: float | None = None
