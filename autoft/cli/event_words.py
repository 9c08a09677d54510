"""What happens in a run, in words: a line an event, and the parts of which a display is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autoft.trainer.events import (
    Evaluated,
    Event,
    Finished,
    Note,
    Recovered,
    Rehearsed,
    Resumed,
    Saved,
    Stage,
    Step,
    Stopped,
)
from autoft.trainer.report.wording import SCORES
from autoft.trainer.result import Evaluation
from autoft.units import duration, size

STAGES = {
    "model": "Loading",
    "rehearse": "Trying",
    "evaluate": "Evaluating",
    "train": "Training",
    "save": "Saving",
}
CHANGES = {
    "micro_batch": "with micro-batches of {rows}",
    "gradient_checkpointing": "with gradient checkpointing, micro-batches of {rows}",
    "offload_checkpoints": "with checkpoints kept in the host's memory, micro-batches of {rows}",
    "row_tokens": "with packed rows cut between their examples, micro-batches of {rows}",
}
NOT_SLOWED = {"idle", "clocks set by an application"}  # reasons of a clock that hold no training back


def lines(event: Event) -> list[str]:
    """What to print of an event that is no step and no progress."""
    match event:
        case Stage():
            return [f"{STAGES.get(event.name, event.name)} {event.detail}".strip()]
        case Rehearsed():
            return [_rehearsed(event)]
        case Recovered():
            return [_recovered(event)]
        case Saved():
            return [f"Checkpoint at step {event.step:,}: {size(event.bytes)} in {duration(event.seconds)}"]
        case Evaluated():
            return [_evaluated(event)]
        case Resumed():
            return [f"Going on from step {event.step:,}", *(f"Skipped: {sentence}" for sentence in event.skipped)]
        case Stopped():
            return [f"{event.reason[:1].upper()}{event.reason[1:]}, at step {event.step:,}"]
        case Finished():
            return [f"Finished: {event.steps:,} steps in {duration(event.seconds)}"]
        case Note():
            return [f"{'Warning' if event.warning else 'Note'}: {event.text}"]
    return []


def step_parts(step: Step, predicted_bytes: int | None, gpu: dict[str, Any] | None) -> list[str]:
    """A step in one line, what matters most first: a narrow line leaves out the end."""
    memory = f"{size(step.memory_bytes)}, peak {size(step.peak_bytes)}"
    return [
        f"step {step.step}/{step.total_steps}",
        f"loss {step.loss:.3f}",
        *left(step),
        f"{step.tokens_per_s:,.0f} tokens/s",
        memory if predicted_bytes is None else f"{memory} of {size(predicted_bytes)} predicted",
        f"learning rate {step.learning_rate:.2g}",
        *gradient(step),
        f"{step.trained_tokens_per_s:,.0f} trained, {step.padded_tokens_per_s:,.0f} with padding",
        *gpu_parts(gpu),
        *next_save(step),
    ]


def left(step: Step) -> list[str]:
    """The time left as a range, one figure where both ends read the same; nothing after the last step."""
    if step.step >= step.total_steps:
        return []
    lower, upper = duration(step.seconds_left_lower), duration(step.seconds_left_upper)
    return [f"{lower} left" if lower == upper else f"{lower} to {upper} left"]


def gradient(step: Step) -> list[str]:
    return ["gradient overflowed"] if step.grad_norm is None else [f"gradient norm {step.grad_norm:.2g}"]


def next_save(step: Step) -> list[str]:
    """When the next checkpoint comes; nothing when the training ends before."""
    wait = step.next_save_s
    if step.step >= step.total_steps or not wait <= step.seconds_left_upper:
        return []
    return [f"next checkpoint in {duration(wait)}" if wait >= 1 else "next checkpoint now"]


def gpu_parts(gpu: dict[str, Any] | None) -> list[str]:
    """Load, power, temperature and what slows it down, of a sample of `profiles.detect.sampler`; what is known."""
    if gpu is None:
        return []
    power, limit = gpu["power_w"], gpu["power_limit_w"]
    slowed = [reason for reason in gpu["throttle"] or () if reason not in NOT_SLOWED]
    known = (
        (gpu["busy_percent"], f"GPU busy {gpu['busy_percent']}%"),
        (power, "" if power is None else f"{power:.0f}" + ("" if limit is None else f" of {limit:.0f}") + " W"),
        (gpu["temperature_c"], f"{gpu['temperature_c']} C"),
        (slowed or None, f"slowed by {', '.join(slowed)}"),
    )
    return [text for value, text in known if value is not None]


def scores(evaluation: Evaluation) -> list[str]:
    """The figures that there are."""
    words = [] if evaluation.loss is None else [f"loss {evaluation.loss:.3f}"]
    shares = (score for score in SCORES if score.share)
    return words + [
        f"{score.label} {value:.1%}" for score in shares if (value := getattr(evaluation, score.name)) is not None
    ]


def fitted(parts: Iterable[str], width: int) -> str:
    """As many of the parts as fit on a line, the first of all whatever its length."""
    line = ""
    for part in parts:
        longer = f"{line}, {part}" if line else part
        if line and len(longer) > width:
            break
        line = longer
    return line


def wrapped(parts: Iterable[str], width: int) -> list[str]:
    """All the parts, on as few lines as hold them, broken between parts."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


def _rehearsed(event: Rehearsed) -> str:
    batch = f"{_rows(event.micro_batch)}, {event.tokens:,} tokens"
    memory = size(event.peak_bytes)
    if event.predicted_bytes is not None:
        memory += f", predicted {size(event.predicted_bytes)}"
        if event.predicted_bytes:
            memory += f" ({event.peak_bytes / event.predicted_bytes - 1:+.1%})"
    return f"Probe step, {batch}: {memory}, took {duration(event.seconds)}"


def _recovered(event: Recovered) -> str:
    when = f"at step {event.step:,}" if event.step else "in the probe step"
    change = CHANGES.get(event.change, event.change).format(rows=_rows(event.micro_batch))
    return f"Out of memory {when} ({event.reason}): going on {change}"


def _evaluated(event: Evaluated) -> str:
    when = f"at step {event.step:,}" if event.when == "during" else f"{event.when} training"
    best = ", the best so far" if event.best else ""
    evaluation = event.evaluation
    figures = ", ".join(scores(evaluation)) or "nothing"
    rows = f"{evaluation.rows:,} held-out {'row' if evaluation.rows == 1 else 'rows'}"
    return f"Evaluated {when}: {figures}{best} ({rows}, {duration(evaluation.seconds)})"


def _rows(number: int) -> str:
    return f"{number:,} {'row' if number == 1 else 'rows'}"
