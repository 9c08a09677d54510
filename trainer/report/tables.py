"""The rows of the report's tables, as text: what page.html only lays out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from autoft.schema import Record
from autoft.trainer.job import Job
from autoft.trainer.report.wording import SCORES, Score, scores
from autoft.trainer.result import Evaluation, RunResult
from autoft.units import duration, size

EVENTS_SHOWN = 200
EVALUATIONS_SHOWN = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A figure of the evaluation. turn: "better", "worse" or "same"; empty where one of both is not known."""

    label: str
    before: str
    after: str
    change: str
    turn: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Predicted beside measured. Bars are (from, to) in percent of the widest of their group; None draws none."""

    label: str
    predicted: str
    measured: str
    difference: str
    predicted_bar: tuple[float, float] | None
    measured_bar: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Happened:
    """An event. kind: its class in page.css, which says how grave it is."""

    when: str
    text: str
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    name: str
    value: str
    default: str


def judged(before: Evaluation, after: Evaluation) -> list[Judged]:
    """Every figure that there is, before and after."""
    return [
        Judged(
            label=score.label,
            before=score.text(was),
            after=score.text(is_),
            change=score.change(was, is_),
            turn=_turn(score, was, is_),
        )
        for score, was, is_ in scores(before, after)
    ]


def headline(result: RunResult) -> Score | None:
    """The figure that tells most: the one the job is judged by, or the first of answers."""
    shown = [score for score, _, after in scores(result.before, result.after) if after is not None]
    of_answers = [score for score in shown if score.share]
    chosen = [score for score in of_answers if score.name == result.job.metric]
    order = ("fields_right", "number_match", "exact_match", "rouge_l", "f1", "json_valid")
    ranked = sorted(of_answers, key=lambda score: order.index(score.name))
    return next(iter([*chosen, *ranked]), None)


def during(result: RunResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the evaluations during training: loss, and the figure that the best one is chosen by."""
    chosen = [score for score in SCORES if score.name in ("loss", result.job.metric)]
    every = -(-len(result.evaluations) // EVALUATIONS_SHOWN) or 1
    shown = [
        (step, evaluation)
        for place, (step, evaluation) in enumerate(result.evaluations)
        if place % every == 0 or step == result.best_step
    ]
    rows = [
        [f"{step:,}{' (kept)' if step == result.best_step else ''}"]
        + [score.text(getattr(evaluation, score.name)) for score in chosen]
        for step, evaluation in shown
    ]
    return ["step", *(score.label for score in chosen)], rows


def compared_memory(result: RunResult) -> list[Compared]:
    """The phases of the run: those that were predicted, measured, or both."""
    predicted, measured = result.predicted, result.phases
    expected_in = {} if predicted is None else predicted.phases
    peak = None if predicted is None else predicted.peak_bytes
    phases: list[tuple[str, int | None, int | None]] = [
        ("loading", expected_in.get("load"), measured.get("load")),
        ("rehearsal of the longest rows", peak, measured.get("rehearse")),
        ("training", peak, result.measured.peak_bytes),
        ("evaluation", expected_in.get("evaluation"), measured.get("evaluate")),
        ("saving", expected_in.get("save"), measured.get("save")),
    ]
    # a rehearsal that was not measured says no more than the training does
    shown = [p for p in phases if (p[1], p[2]) != (None, None) and (p[0] != phases[1][0] or p[2] is not None)]
    widest = max(1, *(value or 0 for _, *values in shown for value in values))
    return [
        Compared(
            label=label,
            predicted="-" if expected is None else size(expected),
            measured="-" if taken is None else size(taken),
            difference="" if not expected or taken is None else f"{taken / expected - 1:+.1%}",
            predicted_bar=None if expected is None else (0.0, round(100 * expected / widest, 2)),
            measured_bar=None if taken is None else (0.0, round(100 * taken / widest, 2)),
        )
        for label, expected, taken in shown
    ]


def compared_time(result: RunResult) -> Compared:
    """Of an optimizer step: the promised range, and the mean of the run."""
    step_time_s, predicted = result.measured.step_time_s, result.predicted
    if predicted is None:
        return Compared(
            label="an optimizer step",
            predicted="-",
            measured=duration(step_time_s),
            difference="",
            predicted_bar=None,
            measured_bar=(0.0, 100.0),
        )
    lower, upper = predicted.step_time_lower_s, predicted.step_time_upper_s
    widest = max(upper, step_time_s) or 1.0
    difference = "within the range"
    if step_time_s < lower:
        difference = f"{step_time_s / lower - 1:+.1%} of its lower end"
    if step_time_s > upper > 0:
        difference = f"{step_time_s / upper - 1:+.1%} of its upper end"
    return Compared(
        label="an optimizer step",
        predicted=f"{duration(lower)} to {duration(upper)}",
        measured=duration(step_time_s),
        difference=difference,
        predicted_bar=(round(100 * lower / widest, 2), round(100 * upper / widest, 2)),
        measured_bar=(0.0, round(100 * step_time_s / widest, 2)),
    )


def happened(events: Iterable[dict[str, Any]]) -> list[Happened]:
    """Events in words, in their order."""
    return [
        Happened(when=_when(event), text=_event_text(event), kind=_event_kind(event))
        for event in list(events)[:EVENTS_SHOWN]
    ]


def marks(events: Iterable[dict[str, Any]]) -> list[tuple[int, str]]:
    """Steps at which the run's memory or its course changed, for the curves."""
    return [
        (event["step"], f"step {event['step']:,}: {event['event']}")
        for event in events
        if event.get("event") in ("recovered", "resumed") and isinstance(event.get("step"), int)
    ]


def settings(job: Job) -> tuple[list[Setting], list[Setting]]:
    """Every setting of the job and its recipe: those that differ from their default, then the others."""
    chosen: list[Setting] = []
    defaults: list[Setting] = []
    for name, value, default in _flat(job):
        setting = Setting(name=name, value=_value(value), default="" if default is _NONE else _value(default))
        (defaults if value == default else chosen).append(setting)
    return chosen, defaults


_NONE = object()  # a setting without a default


def _flat(record: Record, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Record):
            yield from _flat(value, f"{prefix}{field.name}.")
        else:
            missing = field.default is dataclasses.MISSING
            yield f"{prefix}{field.name}", value, _NONE if missing else field.default


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _turn(score: Score, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    if before == after:
        return "same"
    return "better" if (after < before) == score.falls else "worse"


def _when(event: dict[str, Any]) -> str:
    step, at = event.get("step"), str(event.get("at", ""))
    parts = [f"step {step:,}" if step else "before step 1"] if isinstance(step, int) else []
    return ", ".join([*parts, at.replace("T", " ").split(".")[0].removesuffix("+00:00") + " UTC"] if at else parts)


def _event_text(event: dict[str, Any]) -> str:
    match event:
        case {"event": "recovered", "change": change, "micro_batch": rows, "reason": reason}:
            remedy = f"{_REMEDIES.get(change, change)} and " if change != "micro_batch" else ""
            return f"Out of memory: {reason}. The run went on with {remedy}micro-batches of {rows}."
        case {"event": "resumed", "step": step}:
            skipped = " ".join(f"Skipped: {sentence}." for sentence in event.get("skipped", ()))
            return f"Resumed from the checkpoint of step {step:,}. {skipped}".strip()
        case {"event": "stopped", "reason": reason}:
            return f"Stopped: {reason}."
        case {"event": "note", "text": text}:
            return str(text)
    details = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in event.items() if key not in _TOLD)
    return f"{event.get('event', 'event')}{': ' if details else ''}{details}"


_REMEDIES = {
    "gradient_checkpointing": "gradient checkpointing",
    "offload_checkpoints": "checkpoints kept in the host's memory",
    "row_tokens": "packed rows cut between their examples",
}
_TOLD = ("event", "at", "step")


def _event_kind(event: dict[str, Any]) -> str:
    if event.get("event") in ("recovered", "stopped") or event.get("warning") is True:
        return "warning"
    return "plain"
