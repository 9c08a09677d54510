"""Curves as SVG paths, and the ticks beside them: a chart is computed here and drawn by page.html.

A plot is a square of 1000 by 1000 units that the page stretches to the room it has; lines keep their width, and the
labels are text of the page, so that they stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autoft.units import GIB, KIB, MIB, size

Figures = Sequence[tuple[int, float]]  # (step, value)

BUCKETS = 500  # more than a screen has pixels to tell apart, with two points each
SMOOTHED_FROM = 20  # steps: with fewer a curve is read as it is
PLOT = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve. kind: its class in page.css. d: its path. dots: that draws a dot at each point, and no line."""

    label: str
    kind: str
    d: str
    dots: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A label at so many percent of an axis, from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """id: of its element. hover: "step value" of each point to tell of, joined by ";". in_bytes: what values are.

    table: some of the figures, for those who read and don't look: step and text.
    """

    id: str
    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    last_step: int
    hover: str
    in_bytes: bool
    table: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Steps 0 to last_step and values lower to upper, onto the plot."""

    last_step: int
    lower: float
    upper: float

    def x(self, step: float) -> float:
        return PLOT * step / self.last_step

    def y(self, value: float) -> float:
        return PLOT * (self.upper - value) / (self.upper - self.lower)

    def path(self, figures: Figures) -> str:
        """A curve through all of them."""
        return "M" + "L".join(f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in figures)

    def dots(self, figures: Figures) -> str:
        """A dot at each of them, drawn by a round line of no length."""
        return "".join(f"M{self.x(step):.1f} {self.y(value):.1f}h0" for step, value in figures)

    def level(self, value: float) -> str:
        """A line from side to side."""
        return f"M0 {self.y(value):.1f}H{PLOT}"

    def x_ticks(self) -> tuple[Tick, ...]:
        step = max(1.0, nice_step(self.last_step, 4))
        places = range(0, self.last_step + 1, round(step))
        return tuple(Tick(at=self.x(place) / 10, text=f"{place:,}") for place in places)

    def marks(self, marks: Iterable[tuple[int, str]]) -> tuple[Tick, ...]:
        """What happened at a step. Only the first of many at about one place."""
        ticks: dict[int, Tick] = {}
        for step, text in marks:
            if 0 < step <= self.last_step:
                ticks.setdefault(round(self.x(step) / 5), Tick(at=round(self.x(step) / 10, 2), text=text))
        return tuple(ticks.values())


def loss_chart(
    losses: Figures, heldout: Figures, *, label: str, best_step: int | None, marks: Iterable[tuple[int, str]]
) -> Chart | None:
    """The loss of every step and smoothed, and that of the held-out rows. None where no step was made.

    label: what the loss of a step is called where it is another than that of held-out rows, else nothing.
    """
    losses = finite(losses)
    if not losses:
        return None
    heldout = finite(heldout)
    shown = [value for _, value in (*losses, *heldout)]
    last = max(1, losses[-1][0], *(step for step, _ in heldout))
    scale = _scale(last, min(shown), max(shown))
    smoothed = smooth(losses) if len(losses) >= SMOOTHED_FROM else []
    of_step = f" ({label})" if label else ""
    lines = [_curve(f"each step{of_step}", "raw" if smoothed else "main", scale, losses)]
    if smoothed:
        lines.append(_curve(f"smoothed{of_step}", "main", scale, smoothed))
    if heldout:
        of_rows = "held-out rows, cross entropy" if label else "held-out rows"
        lines.append(Line(label=of_rows, kind="second", d=scale.dots(thin(heldout)), dots=True))
    if best_step is not None:
        kept = [figure for figure in heldout if figure[0] == best_step]
        lines += [Line(label=f"kept, step {best_step:,}", kind="kept", d=scale.dots(kept), dots=True)] if kept else []
    first, lowest = losses[0][1], min(losses, key=lambda figure: figure[1])
    end = (smoothed or losses)[-1][1]
    return Chart(
        id="loss-chart",
        title="Loss by step",
        description=f"The {label or 'training loss'} over {_steps(losses)}: {first:.3f} at first, {end:.3f} at the end"
        f"{' (smoothed)' if smoothed else ''}, {lowest[1]:.3f} at the lowest, at step {lowest[0]:,}.",
        lines=tuple(lines),
        x_ticks=scale.x_ticks(),
        y_ticks=_y_ticks(scale, 1, ""),
        marks=scale.marks(marks),
        last_step=last,
        hover=_hover(losses, lambda value: f"{value:.4g}"),
        in_bytes=False,
        table=_table(losses, lambda value: f"{value:.4f}"),
    )


def memory_chart(
    memory: Figures, *, peak: int, predicted: int | None, marks: Iterable[tuple[int, str]]
) -> Chart | None:
    """Bytes held after every step, with the measured and the predicted peak. None where no step tells them."""
    if not memory:
        return None
    last = max(1, memory[-1][0])
    upper = max(peak, predicted or 0, *(value for _, value in memory))
    unit, name = next(((u, n) for u, n in ((GIB, "GiB"), (MIB, "MiB")) if upper >= u), (KIB, "KiB"))
    scale = Scale(last_step=last, lower=0, upper=max(1, upper) * 1.06)
    held = _curve("held after each step", "main", scale, memory)
    lines = [held, Line(label=f"measured peak, {size(peak)}", kind="second", d=scale.level(peak))]
    description = f"The memory held after each of {_steps(memory)}: {size(round(memory[-1][1]))} at the end"
    description += f"; the measured peak was {size(peak)}"
    if predicted is not None:
        lines.append(Line(label=f"predicted peak, {size(predicted)}", kind="third", d=scale.level(predicted)))
        description += f", the predicted one {size(predicted)}"
    return Chart(
        id="memory-chart",
        title="Memory by step",
        description=f"{description}.",
        lines=tuple(lines),
        x_ticks=scale.x_ticks(),
        y_ticks=_y_ticks(scale, unit, f" {name}"),
        marks=scale.marks(marks),
        last_step=last,
        hover=_hover(memory, lambda value: f"{value:.0f}"),
        in_bytes=True,
        table=_table(memory, lambda value: size(round(value))),
    )


def finite(figures: Figures) -> list[tuple[int, float]]:
    """Those that are numbers."""
    return [(step, value) for step, value in figures if math.isfinite(value)]


def thin(figures: Figures, buckets: int = BUCKETS) -> list[tuple[int, float]]:
    """At most two of each bucket of like many, its lowest and its highest, in their order; first and last stay."""
    if len(figures) <= 2 * buckets:
        return list(figures)
    kept = {0, len(figures) - 1}
    for bucket in range(buckets):
        places = range(bucket * len(figures) // buckets, (bucket + 1) * len(figures) // buckets)
        kept.add(min(places, key=lambda place: figures[place][1]))
        kept.add(max(places, key=lambda place: figures[place][1]))
    return [figures[place] for place in sorted(kept)]


def smooth(figures: Figures) -> list[tuple[int, float]]:
    """The exponential mean over a twentieth of all steps; early ones count as their number allows.

    The mean is divided by the weight that it has seen so far, so that it does not start at zero (arXiv:1412.6980, 3).
    """
    keep = 1 - 2 / (1 + max(5, len(figures) / 20))
    mean, weight = 0.0, 0.0
    points = []
    for step, value in figures:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        points.append((step, mean / weight))
    return points


def nice_step(span: float, parts: int) -> float:
    """1, 2 or 5 times a power of ten, so that `span` has at most about so many parts."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / parts * 0.999)


def _curve(label: str, kind: str, scale: Scale, figures: Figures) -> Line:
    """A line, or where there is a single figure a dot."""
    if len(figures) == 1:
        return Line(label=label, kind=kind, d=scale.dots(figures), dots=True)
    return Line(label=label, kind=kind, d=scale.path(thin(figures)))


def _steps(figures: Figures) -> str:
    return f"{len(figures):,} {'step' if len(figures) == 1 else 'steps'}"


def _scale(last_step: int, lower: float, upper: float) -> Scale:
    """With a little room above and below; a loss begins at zero where it comes near."""
    span = (upper - lower) or abs(upper) or 1.0
    bottom = 0.0 if 0 <= lower < 0.25 * upper else lower - 0.06 * span
    return Scale(last_step=last_step, lower=bottom, upper=upper + 0.06 * span)


def _y_ticks(scale: Scale, unit: float, name: str) -> tuple[Tick, ...]:
    step = nice_step((scale.upper - scale.lower) / unit, 6)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(scale.lower / unit / step - 1e-9), math.floor(scale.upper / unit / step + 1e-9)
    return tuple(
        Tick(at=round(scale.y(n * step * unit) / 10, 2), text=f"{n * step:,.{digits}f}{name}")
        for n in range(first, last + 1)
    )


def _hover(figures: Figures, form: Callable[[float], str]) -> str:
    return ";".join(f"{step} {form(value)}" for step, value in thin(figures))


def _table(figures: Figures, form: Callable[[float], str]) -> tuple[tuple[str, str], ...]:
    """Twenty of them, evenly, and the last."""
    every = max(1, math.ceil(len(figures) / 20))
    chosen = [*figures[:-1:every], figures[-1]]
    return tuple((f"{step:,}", form(value)) for step, value in chosen)
