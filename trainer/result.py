"""The RunResult: what a run predicted, measured, learnt and wrote. It is `result.json` in the output folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from autoft.schema import Record
from autoft.trainer.job import Job

SCHEMA_VERSION = 1

Form = Literal["merged", "nf4", "int8"]  # in which a trained model can be judged beside the way it was trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Record):
    """Of the held-out rows, the same before and after training.

    loss: nats a trained token; perplexity is e to it. The rest is of greedy answers, in parts of 1, None where it does
    not apply:
    exact_match: equal to the expected answer. json_valid: a JSON object. fields_right: of all expected fields, those
    that the answer holds with exactly the expected value. number_match: the last number in both is the same.
    f1: of words shared with the expected answer (SQuAD, arXiv:1606.05250). rouge_l: F of the longest common
    subsequence (ROUGE-L, Lin 2004).
    """

    rows: int
    loss: float | None = None
    perplexity: float | None = None
    generated_rows: int = 0
    exact_match: float | None = None
    json_valid: float | None = None
    fields_right: float | None = None
    number_match: float | None = None
    f1: float | None = None
    rouge_l: float | None = None
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
    """What the plan promised: peak_bytes of the training phase (see Measured), seconds an optimizer step from..to.

    phases: peak bytes of each phase of the estimate, by its name. host_bytes: RAM beside a GPU, loading and training;
    None where nothing waits there.
    """

    peak_bytes: int
    step_time_lower_s: float
    step_time_upper_s: float
    method: str
    phases: dict[str, int] = field(default_factory=dict)
    host_bytes: int | None = None


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
class Start(Record):
    """The adapter that a run continued: the name of its folder, and the SHA-256 of its weights' file."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult(Record):
    """A finished run. losses: (step, loss) of every optimizer step. artifacts: file name to SHA-256.

    memory: (step, bytes) that the run held after it, as Measured counts them. evaluations: (step, evaluation) during
    training. best_step: the step whose weights were kept, where that was chosen by an evaluation; None is the last.
    phases: measured peak bytes of "rehearse", "train" and "evaluate". energy_kwh: what the GPUs drew, None where they
    do not tell. seconds: of each stage, of all processes that the run took.
    events: what happened on the way, as in events.jsonl: recoveries, restarts, stops and warnings.
    samples: held-out conversations before and after; sample is the first of them.
    data_sha256: of the token ids and labels that were trained on. auto_class: of transformers, which opens the base.
    base_fingerprint: SHA-256 of samples of the base's weights (sources/weights.py), None in files from before it.
    run_id: of the run, also where its folder is moved; None in files from before it.
    continued: the adapter that training began with, None for a new one. `before` is then its evaluation.
    """

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
    memory: tuple[tuple[int, int], ...] = ()
    evaluations: tuple[tuple[int, Evaluation], ...] = ()
    best_step: int | None = None
    phases: dict[str, int] = field(default_factory=dict)
    energy_kwh: float | None = None
    events: tuple[dict[str, Any], ...] = ()
    samples: tuple[Sample, ...] = ()
    data_sha256: str | None = None
    auto_class: str = "AutoModelForCausalLM"
    base_fingerprint: str | None = None
    run_id: str | None = None
    continued: Start | None = None
