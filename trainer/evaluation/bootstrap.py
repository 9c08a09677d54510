"""How much of a difference between two evaluations would other rows of the same kind show?

Paired bootstrap: rows are drawn with replacement, the same for both models, and the change is computed for each draw
(Efron 1979; Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoft.trainer.evaluation.metrics import Part, Parts

DRAWS = 2000
CONFIDENCE = 0.95
FEWEST_ROWS = 5  # fewer say nothing of others


def changes(before: Parts, after: Parts) -> dict[str, tuple[float, float]]:
    """By figure, the interval in which 95 % of the draws have after - before. Figures of too few rows are left out."""
    return {
        name: interval(before[name], after[name])
        for name in before
        if len(before[name]) == len(after.get(name, ())) >= FEWEST_ROWS
    }


def interval(before: Sequence[Part], after: Sequence[Part]) -> tuple[float, float]:
    """Of after - before, of the same rows in the same order; the same at each call."""
    counts = np.random.default_rng(0).multinomial(len(before), [1 / len(before)] * len(before), size=DRAWS)
    change = _figures(after, counts) - _figures(before, counts)
    lower, upper = np.nanquantile(change, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(lower), float(upper)


def _figures(parts: Sequence[Part], counts: Any) -> Any:
    """The figure of each draw; no number where a draw has only rows without weight. counts: draws x rows."""
    values, weights = np.array(parts, dtype=float).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts @ values / (counts @ weights)
