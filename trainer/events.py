"""What a run tells while it goes: plain values, so that a display, the record and a test can all listen.

`events.jsonl` in the run's folder is the record: one object a line, `event` the class below in small letters, `at` the
time in UTC, then the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoft.schema import Record
from autoft.trainer.result import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Record):
    """A part of the run begins: "model", "rehearse", "evaluate", "train", "save"."""

    name: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed(Record):
    """The step on the longest micro-batch went well.

    Bytes are as Measured has them; predicted_bytes is None without a plan.
    """

    micro_batch: int
    tokens: int
    peak_bytes: int
    predicted_bytes: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Record):
    """One optimizer step is done.

    loss: nats a trained token of this step. grad_norm: before clipping, None where float16 had it overflow and the
    step was left out. tokens_per_s, trained_tokens_per_s,
    padded_tokens_per_s: of the last twenty steps; the first counts no padding, the last is what the device worked on.
    seconds_left_lower, seconds_left_upper: of the training, evaluation left out.
    step_s, step_trained_tokens: of this step alone.
    memory_bytes: what the run holds now, peak_bytes: the most it held, in the unit of its prediction.
    micro_batch: rows in one forward and backward now. next_save_s: until the next checkpoint.
    """

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    step_s: float
    step_trained_tokens: int
    tokens: int
    tokens_per_s: float
    trained_tokens_per_s: float
    padded_tokens_per_s: float
    seconds_left_lower: float
    seconds_left_upper: float
    memory_bytes: int
    peak_bytes: int
    micro_batch: int
    next_save_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered(Record):
    """The device's memory was exhausted at `step` (0: in the rehearsal), and the run goes on with less.

    change: "micro_batch", "gradient_checkpointing", "offload_checkpoints" or "row_tokens", by which packed rows are cut
    between their examples; micro_batch: from now on.
    """

    step: int
    change: str
    micro_batch: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved(Record):
    """A checkpoint is on the disk, verified. step: optimizer steps done. bytes: on the disk."""

    step: int
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated(Record):
    """when: "before", "during" or "after" training. best: better than all before it, by the job's metric."""

    when: str
    step: int
    evaluation: Evaluation
    best: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed(Record):
    """The run goes on from a checkpoint. skipped: checkpoints that were not whole, a sentence each."""

    step: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped(Record):
    """The run ends before its time; resumable: `autoft resume` takes it up again."""

    step: int
    reason: str
    resumable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Record):
    """The run is whole; its result.json is beside this record."""

    steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress(Record):
    """So many of so many, in a stage that has no steps. Not in the record."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Note(Record):
    """A line that the user should see. warning: something may be wrong."""

    text: str
    warning: bool = False


Event = Stage | Rehearsed | Step | Recovered | Saved | Evaluated | Resumed | Stopped | Finished | Progress | Note
Listener = Callable[[Event], None]
