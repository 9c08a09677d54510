"""The RunResult: what a run predicted, measured, learnt and wrote. It is `result.json` in the output folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoft.schema import Record
from autoft.trainer.job import Job

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Record):
    """Of the held-out rows, the same before and after training.

    loss: nats a trained token. The rest is of greedy answers, in parts of 1, None where it does not apply:
    exact_match: equal to the expected answer. json_valid: a JSON object. fields_right: of all expected fields, those
    that the answer holds with exactly the expected value.
    """

    rows: int
    loss: float | None = None
    generated_rows: int = 0
    exact_match: float | None = None
    json_valid: float | None = None
    fields_right: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Record):
    """One held-out conversation, with the expected answer and the model's before and after training."""

    prompt: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted(Record):
    """What the plan promised: peak_bytes of the training phase (see Measured), seconds an optimizer step from..to."""

    peak_bytes: int
    step_time_lower_s: float
    step_time_upper_s: float
    method: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(Record):
    """What the run took.

    peak_bytes: on a GPU, the most that PyTorch had allocated while training; on the CPU, the most that the process grew
        over what it held before the model was loaded. peak_reserved_bytes: GPU only, what PyTorch held of the device.
    """

    peak_bytes: int
    peak_reserved_bytes: int | None = None
    step_time_s: float
    tokens_per_s: float
    trained_tokens_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult(Record):
    """A finished run. losses: (step, loss) of every optimizer step. artifacts: file name to SHA-256."""

    schema_version: int = SCHEMA_VERSION
    autoft_version: str
    job: Job
    base: str
    finished_at: str
    seconds: dict[str, float]
    steps: int
    tokens: int
    trained_tokens: int
    rows: int
    rows_left_out: int
    trainable_params: int
    total_params: int
    losses: tuple[tuple[int, float], ...]
    predicted: Predicted | None
    measured: Measured
    before: Evaluation
    after: Evaluation
    sample: Sample | None
    system_prompt: str | None
    hardware: str
    versions: dict[str, str]
    artifacts: dict[str, str]
    notes: tuple[str, ...] = field(default=())
