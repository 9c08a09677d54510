"""The memory timeline: what lives when, from loading to the steady step, drawn as one HTML page or SVG file."""

from __future__ import annotations

import html
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoft.errors import OutputError
from autoft.home import write_text
from autoft.planner.estimator.target import several
from autoft.planner.memory.recording import Recording
from autoft.planner.plan.exact import Answer
from autoft.planner.rehearsal.layers import Ints
from autoft.planner.search.candidates import describe
from autoft.planner.tracing.trace import KINDS
from autoft.units import GIB, KIB, MIB, size

COLUMNS = 420  # of the chart; in each the lowest and the highest moment are kept
WIDE, HIGH = 2000, 1000  # of the chart, in units of its own that are stretched to the page
GAP = 30  # between the parts of the run
SHARES = {"load": 0.18, "evaluation": 0.2}  # of the width; the steps share the rest
PHASE_SHARE = 0.2  # of its part, the least that a phase gets
FAR_LIMIT = 2.5  # a limit this many times above all else would flatten the chart: it is told in words alone
PLOT_TOP, PLOT_HEIGHT, GUTTER = 58, 360, 66  # pixels

# (on white, on black), from the bottom of the stack up. Paul Tol's "muted" scheme and two greys: told apart by readers
# with any of the common kinds of colour vision (https://personal.sron.nl/~pault/); the darkest are lighter on black.
COLORS = {
    "weights": ("#332288", "#6f63c9"),
    "quantization_state": ("#88ccee", "#88ccee"),
    "adapter": ("#44aa99", "#44aa99"),
    "gradients": ("#117733", "#3f9c5e"),
    "optimizer": ("#999933", "#a9a943"),
    "inputs": ("#555555", "#8c8c8c"),
    "activations": ("#ddcc77", "#ddcc77"),
    "logits": ("#cc6677", "#cc6677"),
    "workspaces": ("#882255", "#b04a80"),
    "temporaries": ("#aa4499", "#c067b0"),
    "kv_cache": ("#661100", "#b3593f"),
    "rounding": ("#bbbbbb", "#5c5c5c"),
}
# Ink, quieter ink, hair lines, page, the limit: on white and on black
INKS = (
    ("#1a1a1a", "#5f5f5f", "#dddddd", "#ffffff", "#c1121f"),
    ("#ececec", "#a6a6a6", "#3a3a3a", "#141414", "#ff6b6b"),
)
BANDS = (*KINDS, "rounding")


@dataclass(frozen=True, slots=True)
class Timeline:
    """events: the moments that are drawn, in order. xs: of each, up to WIDE. bytes: of each and each band; reserved: of
    each, the highest in its column. peak: place of the steady step's peak among them. limit_bytes: of reserved."""

    recording: Recording
    title: str
    subtitle: str
    events: list[int]
    xs: list[float]
    bytes: Ints
    reserved: list[int]
    peak: int
    peak_reserved_bytes: int
    limit_bytes: int
    parts: list[tuple[str, float, float, int]]  # (name, from x, to x, highest allocated)
    phases: list[tuple[str, float, float]]

    @property
    def bands(self) -> list[str]:
        """Those of which there is a byte anywhere."""
        return [name for name, column in zip(BANDS, self.bytes.T, strict=True) if column.any()]

    def at_peak(self) -> dict[str, int]:
        """Bytes by band at the peak; zeros left out."""
        return {name: int(n) for name, n in zip(BANDS, self.bytes[self.peak], strict=True) if n}


def write(path: Path, drawn: Timeline) -> None:
    """Write the timeline in the form that the suffix of `path` names, all of it or nothing. Raises: OutputError."""
    try:
        write_text(path, to_svg(drawn) if path.suffix.lower() == ".svg" else to_html(drawn))
    except OSError as error:
        raise OutputError(f"--trace {path}: {error.strerror or error}", fix="give another path") from error


def timeline(recording: Recording, answer: Answer, model: str) -> Timeline:
    """recording: of the answer's rehearsal. model: as the user calls it."""
    target, num_gpus = answer.target, answer.estimate.num_gpus
    spans = _spans(recording)
    chosen: list[int] = []
    xs: list[float] = []
    reserved: list[int] = []
    peak = recording.steady_peak()
    for phase, (left, right) in enumerate(spans):
        start, end = recording.starts[phase], recording.starts[phase + 1]
        columns = max(2, round(COLUMNS * (right - left) / WIDE))
        edges = np.unique(np.linspace(start, end, columns + 1).astype(np.int64))
        for first, stop in itertools.pairwise(edges.tolist()):
            heights = recording.allocated[first:stop]
            kept = {first + int(np.argmin(heights)), first + int(np.argmax(heights))}
            kept |= {e for e in (start, end - 1, peak) if first <= e < stop}
            chosen += sorted(kept)
            # side by side in their column: at its own place a peak of one event would be too thin to be seen
            begin, wide = left + (right - left) * (first - start) / (end - start), (right - left) * (stop - first)
            xs += [begin + wide / (end - start) * i / len(kept) for i in range(len(kept))]
            reserved += [int(recording.reserved[first:stop].max())] * len(kept)
    names = [recording.group(phase) for phase in range(len(spans))]
    parts = []
    for name in dict.fromkeys(names):
        mine = [phase for phase, other in enumerate(names) if other == name]
        highest = int(recording.allocated[recording.peak(mine)])
        parts.append((name, spans[mine[0]][0], spans[mine[-1]][1], highest))
    return Timeline(
        recording,
        f"{model.rstrip('/').rsplit('/', 1)[-1]}, {describe(answer.recipe)}: memory of a training step",
        f"Sequences of {answer.recipe.seq_len} tokens, on {several(num_gpus, target.name, target.hosts)}",
        chosen,
        xs,
        _bands_at(recording, chosen),
        reserved,
        chosen.index(peak),
        answer.estimate.peak_reserved_bytes,
        max(0, target.available_bytes - target.device_bytes(0, num_gpus)),
        parts,
        [(phase.name, *span) for phase, span in zip(recording.rehearsal.phases, spans, strict=True)],
    )


def _bands_at(recording: Recording, events: list[int]) -> Ints:
    """Bytes of each band after each of the events."""
    kinds = recording.rehearsal.kinds[recording.keys]
    living = [np.cumsum(np.where(kinds == number, recording.sizes, 0))[events] for number in range(len(KINDS))]
    rounding = recording.allocated[events] - np.sum(living, axis=0)
    return np.column_stack([*living, rounding])


def _spans(recording: Recording) -> list[tuple[float, float]]:
    """From where to where each phase is drawn: the parts side by side with gaps, in each the phases by their events."""
    counts = np.diff(recording.starts)
    names = [recording.group(phase) for phase in range(len(counts))]
    parts = list(dict.fromkeys(names))
    room = WIDE - GAP * (len(parts) - 1)
    shares = {part: SHARES[part] for part in parts if part in SHARES}
    for part in parts:
        shares.setdefault(part, (1 - sum(SHARES.get(other, 0) for other in parts)) / len(set(parts) - set(SHARES)))
    spans = []
    left = 0.0
    for part in parts:
        width = room * shares[part]
        mine = [phase for phase, name in enumerate(names) if name == part]
        least = min(PHASE_SHARE, 1 / len(mine))
        total = max(1, sum(counts[mine]))
        for phase in mine:
            wide = width * (least + (1 - least * len(mine)) * counts[phase] / total)
            spans.append((left, left + wide))
            left += wide
        left += GAP
    return spans


# The chart, alike in page and file: paths in units that are stretched, words in pixels at places in per cent


def _chart(drawn: Timeline) -> str:
    highest = max(drawn.reserved)
    near = _is_near(drawn)
    top = 1.04 * max(highest, drawn.limit_bytes if near else 0)
    bottom = PLOT_TOP + PLOT_HEIGHT
    peak_x, peak_y = drawn.xs[drawn.peak], int(drawn.bytes[drawn.peak].sum())
    pieces = []
    for tick in _ticks(top):
        y = _round(bottom - PLOT_HEIGHT * tick / top)
        pieces.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        pieces.append(f'<text class="tick" x="-8" y="{y}" dy=".35em" text-anchor="end">{_tick(tick)}</text>')
    for name, left, right, height in drawn.parts:
        x = _percent(left)
        pieces.append(f'<text class="part" x="{x}" y="14">{_words(name)}</text>')
        pieces.append(f'<text class="height" x="{x}" y="31">{_short(height)}</text>')
        pieces.append(f'<line class="axis" x1="{x}" x2="{_percent(right)}" y1="{bottom}" y2="{bottom}"/>')
    pieces.append(
        f'<svg x="0" y="{PLOT_TOP}" width="100%" height="{PLOT_HEIGHT}" viewBox="0 0 {WIDE} {HIGH}" '
        f'preserveAspectRatio="none">{_areas(drawn, top)}{_lines(drawn, top, near)}</svg>'
    )
    edges = {left for _, left, _, _ in drawn.parts}
    for name, left, right in drawn.phases:
        if name == "load":
            continue
        if left not in edges:
            x = _percent(left)
            pieces.append(f'<line class="phase-edge" x1="{x}" x2="{x}" y1="{PLOT_TOP}" y2="{bottom + 6}"/>')
        middle = _percent((left + right) / 2)
        pieces.append(f'<text class="phase" x="{middle}" y="{bottom + 18}" text-anchor="middle">{_words(name)}</text>')
    x, y = _percent(peak_x), _round(bottom - PLOT_HEIGHT * peak_y / top)
    anchor = "start" if peak_x < 0.1 * WIDE else "end" if peak_x > 0.9 * WIDE else "middle"
    pieces.append(f'<line class="peak" x1="{x}" x2="{x}" y1="{PLOT_TOP - 4}" y2="{bottom}"/>')
    pieces.append(f'<circle class="peak-dot" cx="{x}" cy="{y}" r="4"/>')
    pieces.append(f'<text class="peak-word" x="{x}" y="{PLOT_TOP - 9}" text-anchor="{anchor}">peak</text>')
    return "\n".join(pieces)


def _areas(drawn: Timeline, top: float) -> str:
    """Each band from its upper edge down to zero, the highest first: each covers the lower part of those before."""
    heights = np.cumsum(drawn.bytes, axis=1)
    pieces = []
    for band in reversed(drawn.bands):
        number = BANDS.index(band)
        path = ""
        for _, left, right, _ in drawn.parts:
            places = [i for i, x in enumerate(drawn.xs) if left <= x <= right]
            if not drawn.bytes[places, number].any():
                continue
            points = [(drawn.xs[i], HIGH * (1 - heights[i, number] / top)) for i in places]
            path += f"M{left:.0f} {HIGH}L{_points([*points, (right, points[-1][1])])} {right:.0f} {HIGH}z"
        pieces.append(f'<path class="{band} area" d="{path}"/>')
    return "".join(pieces)


def _lines(drawn: Timeline, top: float, near: bool) -> str:
    """Reserved bytes, part by part, and the limit where it is in sight."""
    path = ""
    if _caches(drawn):
        for _, left, right, _ in drawn.parts:
            places = [i for i, x in enumerate(drawn.xs) if left <= x <= right]
            points = [(drawn.xs[i], HIGH * (1 - drawn.reserved[i] / top)) for i in places]
            path += f"M{_points(_stairs([*points, (right, points[-1][1])]))}"
    lines = f'<path class="reserved" d="{path}"/>' if path else ""
    if near:
        y = _round(HIGH * (1 - drawn.limit_bytes / top))
        lines += f'<path class="limit" d="M0 {y}H{WIDE}"/>'
    return lines


def _is_near(drawn: Timeline) -> bool:
    return drawn.limit_bytes <= FAR_LIMIT * max(drawn.reserved)


def _caches(drawn: Timeline) -> bool:
    """Whether the allocator reserves more than it hands out: a CPU's does not."""
    return bool((drawn.recording.reserved > drawn.recording.allocated).any())


def _stairs(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stairs = points[:1]
    for x, y in points[1:]:
        if y != stairs[-1][1]:
            stairs += [(x, stairs[-1][1]), (x, y)]
    return [*stairs, (points[-1][0], points[-1][1])]


def _points(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.0f} {y:.0f}" for x, y in points)


def _ticks(top: float) -> list[int]:
    """Four to eight round figures from 0 up."""
    unit = GIB if top >= 2 * GIB else MIB
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if top / unit / (s * 10**e) <= 7)
    return [step * n * unit for n in range(int(top / unit / step) + 1)]


def _tick(num_bytes: int) -> str:
    if num_bytes == 0:
        return "0"
    return f"{num_bytes // GIB} GiB" if num_bytes % GIB == 0 else f"{num_bytes // MIB:,} MiB"


def _size(num_bytes: int) -> str:
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return size(num_bytes) if num_bytes >= KIB else f"{num_bytes} B"


def _short(num_bytes: int) -> str:
    """Three digits: narrow enough to stand over a narrow part."""
    return f"{num_bytes / GIB:.3g} GiB" if num_bytes >= GIB else size(num_bytes)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(x: float) -> str:
    return f"{100 * x / WIDE:.2f}%"


def _round(value: float) -> str:
    return f"{value:.1f}"


# What stands beside the chart


def _rows(drawn: Timeline) -> list[tuple[str, str, int]]:
    """(class of the key, name, bytes) of what lives at the peak, the stack's top first, then the lines."""
    living = drawn.at_peak()
    rows = [(name, _words(name), living.get(name, 0)) for name in reversed(drawn.bands)]
    rows.append(("", "allocated", sum(living.values())))
    if _caches(drawn):
        rows.append(("reserved", "reserved", drawn.peak_reserved_bytes))
    rows.append(("limit", "limit of reserved" if _caches(drawn) else "limit", drawn.limit_bytes))
    return rows


def _data(drawn: Timeline) -> dict[str, object]:
    """What the page's pointer reads."""
    places = [drawn.recording.where(event) for event in drawn.events]
    names = list(dict.fromkeys(places))
    return {
        "bands": list(BANDS),
        "peak": drawn.peak,
        "peak_reserved_bytes": drawn.peak_reserved_bytes,
        "limit_bytes": drawn.limit_bytes,
        "where": names,
        "points": [
            [round(x), names.index(place), reserved, *row]
            for x, place, reserved, row in zip(drawn.xs, places, drawn.reserved, drawn.bytes.tolist(), strict=True)
        ],
    }


def _note(drawn: Timeline) -> str:
    note = "Across: allocations and frees in their order, each phase on its own scale. This is not time."
    return note if _is_near(drawn) else f"{note} The limit lies above the chart."


def to_html(drawn: Timeline) -> str:
    """One page, with nothing to fetch."""
    title, subtitle = html.escape(drawn.title), html.escape(drawn.subtitle)
    where = html.escape(drawn.recording.where(drawn.events[drawn.peak]))
    rows = "\n".join(
        f'<tr class="{"total" if not key else "line" if key in ("reserved", "limit") else "band"}">'
        f'<td><i class="key {key}"></i></td><th scope="row">{name}</th><td>{_size(num)}</td><td>{num:,}</td>'
        f'<td class="here" data-name="{key or "allocated"}"></td></tr>'
        for key, name, num in _rows(drawn)
    )
    data = json.dumps(_data(drawn), separators=(",", ":")).replace("<", "\\u003c")
    label = html.escape(f"{drawn.title}. Peak: {_size(sum(drawn.at_peak().values()))}", quote=True)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{_style(".key", "background")}
{PAGE_STYLE}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="subtitle">{subtitle}</p>
<main>
<figure>
<svg id="chart" role="img" aria-label="{label}" width="100%" height="{PLOT_TOP + PLOT_HEIGHT + 26}">
{_chart(drawn)}
<line id="cursor" x1="0" x2="0" y1="{PLOT_TOP}" y2="{PLOT_TOP + PLOT_HEIGHT}" visibility="hidden"/>
<rect id="plot" x="0" y="{PLOT_TOP}" width="100%" height="{PLOT_HEIGHT}" fill="transparent"/>
</svg>
<figcaption>{_note(drawn)}</figcaption>
</figure>
<section>
<p><b>At the peak</b>: {where}</p>
<p id="at">Point at the chart to read any other moment.</p>
<table>
<thead><tr><td></td><th scope="col">component</th><th scope="col">at the peak</th><th scope="col">bytes</th>\
<th scope="col" class="here">here</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>
</main>
<script type="application/json" id="data">{data}</script>
<script>
{SCRIPT.replace("WIDE", str(WIDE))}
</script>
</body>
</html>
"""


def to_svg(drawn: Timeline) -> str:
    """A drawing of fixed size, with the words of the page in it."""
    width, head = 1200, 64
    rows = _rows(drawn)
    chart_end = head + PLOT_TOP + PLOT_HEIGHT + 26
    lines = -(-len(rows) // 2)
    height = chart_end + 78 + 22 * lines + 12
    words = []
    for number, (key, name, num) in enumerate(rows):
        x, y = 24 + (number // lines) * 590, chart_end + 78 + 22 * (number % lines)
        if key in ("reserved", "limit"):
            words.append(f'<path class="{key}" d="M{x} {y - 4}h14"/>')
        elif key:
            words.append(f'<rect class="{key}" x="{x}" y="{y - 10}" width="12" height="12"/>')
        words.append(f'<text x="{x + 24}" y="{y}">{name}</text>')
        words.append(f'<text x="{x + 310}" y="{y}" text-anchor="end">{_size(num)}</text>')
        words.append(f'<text class="quiet" x="{x + 470}" y="{y}" text-anchor="end">{num:,} bytes</text>')
    where = html.escape(drawn.recording.where(drawn.events[drawn.peak]))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title>{html.escape(drawn.title)}</title>
<style>
{_style("rect", "fill")}
</style>
<rect class="page" width="{width}" height="{height}"/>
<text class="title" x="24" y="32">{html.escape(_clipped(drawn.title, 90))}</text>
<text class="quiet" x="24" y="54">{html.escape(_clipped(drawn.subtitle, 150))}</text>
<svg x="{24 + GUTTER}" y="{head + 8}" width="{width - 48 - GUTTER}" height="{chart_end - head}" overflow="visible">
{_chart(drawn)}
</svg>
<text class="quiet" x="24" y="{chart_end + 22}">{_note(drawn)}</text>
<text class="strong" x="24" y="{chart_end + 50}">At the peak: {where}</text>
{"".join(words)}
</svg>
"""


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _style(keys: str, property_: str) -> str:
    """keys: selector of the legend's colour fields. property_: that gives them their colour."""
    light, dark = (_theme(theme, keys, property_) for theme in (0, 1))
    return f"""text {{ font: 13px system-ui, sans-serif }}
.tick, .phase {{ font-size: 12px }}
.title {{ font-size: 18px; font-weight: 600 }}
.part, .strong, .peak-word {{ font-weight: 600 }}
.reserved, .limit {{ fill: none; stroke-width: 2; vector-effect: non-scaling-stroke }}
.limit {{ stroke-dasharray: 7 4 }}
.area {{ shape-rendering: crispEdges }}
.phase-edge, .peak {{ stroke-dasharray: 2 3 }}
.peak-dot {{ stroke-width: 1.5 }}
{light}
@media (prefers-color-scheme: dark) {{
{dark}
}}"""


def _theme(theme: int, keys: str, property_: str) -> str:
    ink, quiet, faint, page, limit = INKS[theme]
    colors = "\n".join(
        f"path.{name} {{ fill: {pair[theme]} }} {keys}.{name} {{ {property_}: {pair[theme]} }}"
        for name, pair in COLORS.items()
    )
    return f"""{colors}
text {{ fill: {ink} }}
.page {{ fill: {page} }}
.tick, .phase, .quiet, .height {{ fill: {quiet} }}
.grid, .phase-edge {{ stroke: {faint} }}
.axis, .reserved, .peak, #cursor {{ stroke: {ink} }}
.peak-dot {{ fill: {ink}; stroke: {page} }}
.limit {{ stroke: {limit} }}
body {{ color: {ink}; background: {page} }}
.key.reserved {{ border-color: {ink} }}
.key.limit {{ border-color: {limit} }}
.subtitle, figcaption, thead, #at {{ color: {quiet} }}
td, th {{ border-color: {faint} }}"""


PAGE_STYLE = f""":root {{ color-scheme: light dark }}
body {{ margin: 24px auto; padding: 0 16px; max-width: 1560px; font: 14px/1.45 system-ui, sans-serif }}
h1 {{ font-size: 20px; line-height: 1.25; margin: 0 }}
.subtitle {{ margin: 4px 0 20px }}
figure {{ margin: 0; min-width: 0 }}
figcaption {{ font-size: 12px; margin: 4px 0 20px }}
section p {{ margin: 0 0 4px }}
#at {{ min-height: 2.9em }}
#chart {{ display: block; overflow: visible; box-sizing: border-box; padding-left: {GUTTER}px }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; max-width: 560px }}
td, th {{ padding: 3px 0 3px 12px; text-align: right; font-weight: normal; white-space: nowrap }}
td:first-child {{ padding-left: 0; width: 16px }}
th:nth-child(2) {{ text-align: left; padding-left: 8px }}
.here {{ min-width: 66px }}
.total > * {{ border-top: 1px solid; font-weight: 600 }}
.key {{ display: block; width: 14px; height: 14px }}
.key.reserved, .key.limit {{ height: 0; border-width: 2px 0 0; border-style: solid; background: none }}
.key.limit {{ border-top-style: dashed }}
@media (max-width: 760px) {{ .phase {{ display: none }} }}
@media (max-width: 520px) {{
  .part, .height {{ font-size: 12px }}
  .tick {{ font-size: 11px }}
  #chart {{ padding-left: 52px }}
  .here {{ display: none }}
  table {{ font-size: 12px }}
  td, th {{ padding-left: 6px }}
}}
@media (min-width: 1280px) {{
  main {{ display: grid; grid-template-columns: minmax(0, 1fr) 470px; gap: 40px }}
}}"""

SCRIPT = """const d = JSON.parse(document.getElementById("data").textContent);
const plot = document.getElementById("plot"), cursor = document.getElementById("cursor");
const at = document.getElementById("at"), asked = at.textContent;
const size = n => n >= 2**30 ? (n / 2**30).toFixed(2) + " GiB"
  : n >= 2**20 ? Math.round(n / 2**20) + " MiB" : n >= 2**10 ? Math.round(n / 2**10) + " KiB" : n + " B";
const show = point => {
  const sum = point ? point.slice(3).reduce((a, b) => a + b) : 0;
  for (const cell of document.querySelectorAll("td.here")) {
    const name = cell.dataset.name;
    cell.textContent = !point || name == "limit" ? "" : size(name == "allocated" ? sum
      : name == "reserved" ? point[2] : point[3 + d.bands.indexOf(name)]);
  }
  at.textContent = point ? "Here: " + d.where[point[1]] + ", " + size(sum) : asked;
  cursor.setAttribute("visibility", point ? "visible" : "hidden");
  if (point) for (const side of ["x1", "x2"]) cursor.setAttribute(side, 100 * point[0] / WIDE + "%");
};
plot.addEventListener("pointermove", e => {
  const box = plot.getBoundingClientRect(), x = (e.clientX - box.left) / box.width * WIDE;
  show(d.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
});
plot.addEventListener("pointerleave", () => show(null));"""
