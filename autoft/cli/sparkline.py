"""A curve in one line of text, smoothed, of bounded size however long the run."""

from __future__ import annotations

import itertools
import math

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*%#"
MOST_POINTS = 512
HORIZON_STEPS = 20  # assumption: over so many steps the noise of single batches is gone


class Curve:
    """Values smoothed by an exponential mean without the bias of its start (as Adam's: arXiv:1412.6980)."""

    def __init__(self) -> None:
        self.now: float | None = None
        self._sum = 0.0
        self._weight = 0.0
        self._points: list[float] = []
        self._each = 1  # values in a point
        self._waiting: list[float] = []

    def add(self, value: float) -> None:
        """A value that is no number is left out."""
        if not math.isfinite(value):
            return
        keep = 1 - 1 / HORIZON_STEPS
        self._sum = keep * self._sum + (1 - keep) * value
        self._weight = keep * self._weight + (1 - keep)
        self.now = self._sum / self._weight
        self._waiting.append(self.now)
        if len(self._waiting) == self._each:
            self._points.append(_mean(self._waiting))
            self._waiting = []
        if len(self._points) == MOST_POINTS:
            self._points = [_mean(self._points[i : i + 2]) for i in range(0, MOST_POINTS, 2)]
            self._each *= 2

    def line(self, width: int, *, ascii_only: bool = False) -> str:
        """The whole course in at most `width` characters, from its lowest to its highest value."""
        points = [*self._points, *([_mean(self._waiting)] if self._waiting else [])]
        cells = min(width, len(points))
        if cells < 2:
            return ""
        bounds = [round(i * len(points) / cells) for i in range(cells + 1)]
        means = [_mean(points[a:b]) for a, b in itertools.pairwise(bounds)]
        low, high = min(means), max(means)
        marks = ASCII if ascii_only else BLOCKS
        scale = (len(marks) - 1) / (high - low) if high > low else 0.0
        return "".join(marks[round((mean - low) * scale)] for mean in means)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
