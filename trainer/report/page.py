"""The page: what the run's result says, laid out by page.html. Nothing in it is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.trainer.objectives import objective_of
from autoft.trainer.report import tables
from autoft.trainer.report.charts import Chart, finite, loss_chart, memory_chart
from autoft.trainer.report.wording import how_trained, judged_rows, question, snippet, what_it_is
from autoft.trainer.result import RunResult, Sample
from autoft.units import count, duration, energy, size

if TYPE_CHECKING:
    from jinja2 import Template

TEXT_SHOWN = 4000  # characters of a prompt or an answer; result.json has all
NOTES_SHOWN = 50
STAGES = {
    "load": "loading",
    "rehearse": "rehearsal",
    "evaluate_before": "evaluation before training",
    "train": "training",
    "evaluate_after": "evaluation after training",
    "save": "saving",
}
# characters that HTML has no place for, halves of pairs among them
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]")


def report_html(result: RunResult, name: str) -> str:
    """The whole page, less than a megabyte. name: of the run, its title."""
    from markupsafe import Markup

    style, script = _part("page.css"), _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = _template().render(style=Markup(style), script=Markup(script), script_hash=digest, **_content(result, name))
    return _NOT_TEXT.sub("\ufffd", html)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(size=size, duration=duration, energy=energy, count=count, clipped=_clipped)
    return environment.from_string(_part("page.html"))


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _content(result: RunResult, name: str) -> dict[str, Any]:
    """What page.html shows."""
    chosen, defaults = tables.settings(result.job)
    during_head, during_rows = tables.during(result)
    return {
        "name": name,
        "result": result,
        "what": what_it_is(result.job.recipe),
        "how": how_trained(result.job.recipe),
        "data": Path(result.job.data or "").name,
        "tiles": _tiles(result),
        "judged": tables.judged(result.before, result.after),
        "judged_rows": judged_rows(result.after),
        "during_head": during_head,
        "during_rows": during_rows,
        "samples": [(sample, _same(sample.before, sample), _same(sample.after, sample)) for sample in _samples(result)],
        "charts": _charts(result),
        "memory": tables.compared_memory(result),
        "time": tables.compared_time(result),
        "happened": tables.happened(result.events),
        "events_left_out": max(0, len(result.events) - tables.EVENTS_SHOWN),
        "notes": result.notes[:NOTES_SHOWN],
        "chosen": chosen,
        "defaults": defaults,
        "stages": [(STAGES.get(stage, stage.replace("_", " ")), spent) for stage, spent in result.seconds.items()],
        "ask": f"autoft chat . -p {shlex.quote(question(result))}",
        "snippet": snippet(result),
    }


def _charts(result: RunResult) -> dict[str, Chart | None]:
    marks = tables.marks(result.events)
    heldout = {0: result.before.loss, **{step: evaluation.loss for step, evaluation in result.evaluations}}
    heldout.setdefault(result.best_step or result.steps, result.after.loss)
    predicted = None if result.predicted is None else result.predicted.peak_bytes
    return {
        "loss": loss_chart(
            result.losses,
            [(step, loss) for step, loss in sorted(heldout.items()) if loss is not None],
            label=objective_of(result.job.recipe).label,
            best_step=result.best_step,
            marks=marks,
        ),
        "memory": memory_chart(result.memory, peak=result.measured.peak_bytes, predicted=predicted, marks=marks),
    }


def _tiles(result: RunResult) -> list[tuple[str, str, str]]:
    """What a reader wants to know first: label, figure, and a word on it."""
    tiles = []
    headline = tables.headline(result)
    if headline is not None:
        after, before = (headline.text(getattr(e, headline.name)) for e in (result.after, result.before))
        tiles.append((headline.label, after, f"before: {before}"))
    if result.after.loss is not None:
        was = "" if result.before.loss is None else f"before: {result.before.loss:.3f}"
        tiles.append(("held-out loss", f"{result.after.loss:.3f}", was))
    elif losses := finite(result.losses):
        label = objective_of(result.job.recipe).label or "training loss"
        tiles.append((label, f"{losses[-1][1]:.3f}", f"at first: {losses[0][1]:.3f}"))
    predicted = "" if result.predicted is None else f"predicted: {size(result.predicted.peak_bytes)}"
    tiles += [
        ("peak memory", size(result.measured.peak_bytes), predicted),
        ("time", duration(sum(result.seconds.values())), f"training: {duration(result.seconds.get('train', 0.0))}"),
        (
            "speed",
            f"{result.measured.tokens_per_s:,.0f} tokens/s",
            f"{result.measured.trained_tokens_per_s:,.0f} trained",
        ),
        ("trained weights", count(result.trainable_params), f"of {count(result.total_params)}"),
    ]
    return tiles


def _samples(result: RunResult) -> tuple[Sample, ...]:
    return result.samples or ((result.sample,) if result.sample is not None else ())


def _same(answer: str, sample: Sample) -> bool:
    return answer.strip() == sample.expected.strip()


def _clipped(text: str) -> str:
    """A text that fits the page."""
    if len(text) <= TEXT_SHOWN:
        return text
    return f"{text[:TEXT_SHOWN]} … ({len(text) - TEXT_SHOWN:,} more characters, in result.json)"
