"""Results to report, made up: one of a run on a GPU with all that a result can tell, and what others lack of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation, Measured, Predicted, RunResult, Sample

GIB = 2**30
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }} &amp; \x00\x1b[31m \ud800 ```"


def evaluation(loss: float, share: float) -> Evaluation:
    return Evaluation(
        rows=60, loss=loss, perplexity=math.exp(loss), generated_rows=50, fields_right=share, exact_match=share / 2
    )


def result_of(steps: int = 300) -> RunResult:
    """A run on a GPU with all that a result can tell."""
    every = max(1, steps // 6)
    sample = Sample(prompt="Is it blue?", expected="It is.", before="Perhaps.\nOr not.", after=" It is. ")
    return RunResult(
        autoft_version="0.1.0",
        job=Job(
            model="m",
            data="mails.jsonl",
            device="cuda",
            recipe=Recipe(method="qlora", quant_type="nf4", rank=32),
            eval_steps=every,
            metric="fields_right",
        ),
        base="org/model",
        finished_at="2026-11-25T18:30:00+00:00",
        seconds={"load": 12.1, "train": 1830.0},
        steps=steps,
        tokens=1_234_567,
        trained_tokens=234_567,
        rows=1200,
        rows_left_out=3,
        trainable_params=40_370_176,
        total_params=7_615_616_512,
        losses=tuple((step, 0.4 + 2 * math.exp(-4 * step / steps) + 0.1 * (step % 3)) for step in range(1, steps + 1)),
        predicted=Predicted(
            peak_bytes=8 * GIB,
            step_time_lower_s=0.8,
            step_time_upper_s=1.2,
            method="rehearsal",
            phases={"load": 6 * GIB, "first_step": 8 * GIB, "steady_step": 8 * GIB, "evaluation": 5 * GIB},
        ),
        measured=Measured(
            peak_bytes=9 * GIB,
            peak_reserved_bytes=10 * GIB,
            step_time_s=1.1,
            tokens_per_s=8123.4,
            trained_tokens_per_s=2011.2,
        ),
        before=evaluation(1.9, 0.11),
        after=evaluation(0.6, 0.83),
        sample=sample,
        system_prompt="Answer briefly.",
        hardware="NVIDIA A100",
        versions={"torch": "2.13.0", "peft": "0.21.2"},
        artifacts={"adapter_model.safetensors": "ab" * 32},
        notes=("3 rows are longer than 1,024 tokens and were left out",),
        memory=tuple((step, (3 - (step > steps / 2)) * GIB) for step in range(1, steps + 1)),
        evaluations=tuple((step, evaluation(1.9 - step / steps, 0.5)) for step in range(every, steps + 1, every)),
        best_step=every,
        phases={"rehearse": 9 * GIB, "train": 9 * GIB, "evaluate": 5 * GIB},
        energy_kwh=0.18,
        events=(
            {"event": "recovered", "step": 0, "change": "micro_batch", "micro_batch": 4, "reason": "no room"},
            {"event": "recovered", "step": 7, "change": "offload_checkpoints", "micro_batch": 1, "reason": "no room"},
            {
                "event": "resumed",
                "step": 9,
                "skipped": ["step 12: a file is cut short"],
                "at": "2026-11-25T18:10:00.1+00:00",
            },
            {"event": "note", "text": "step 8: the loss rose to 4.1", "warning": True},
            {"event": "overheated", "step": 10, "degrees": 91},
        ),
        samples=(sample, Sample(prompt="مرحبا", expected="x", before="", after="y" * 300)),
        data_sha256="ef" * 32,
    )


NOTHING = Evaluation(rows=0)
UNJUDGED = {"before": NOTHING, "after": NOTHING, "evaluations": ()}
UNASKED = {"sample": None, "samples": ()}
UNTOLD = Predicted(peak_bytes=0, step_time_lower_s=0.0, step_time_upper_s=0.0, method="m")
LESS: dict[str, dict[str, Any]] = {
    "no evaluation": {**UNJUDGED, "best_step": None, **UNASKED},
    "no answers": {"before": replace(NOTHING, loss=1.0), "after": replace(NOTHING, loss=2.0), **UNASKED},
    "only the old sample": {"samples": ()},
    "no prediction": {"predicted": None, "phases": {}},
    "a prediction of nothing": {"predicted": UNTOLD},
    "no curve of memory": {"memory": ()},
    "no events": {"events": (), "notes": ()},
    "no hashes": {"artifacts": {}, "data_sha256": None, "versions": {}, "energy_kwh": None, "system_prompt": None},
    "on the CPU": {"job": Job(model="starter", data="starter", recipe=Recipe()), "energy_kwh": None},
    "full fine-tune": {"job": Job(model="starter", recipe=Recipe(method="full"))},
    "a loss that is no number": {"losses": ((1, math.nan), (2, 1.0))},
    "no loss at all": {"losses": ((1, math.nan),), **UNJUDGED},
    "a constant loss": {"losses": tuple((step, 0.0) for step in range(1, 30)), **UNJUDGED},
}  # fmt: skip
