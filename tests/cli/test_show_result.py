"""What is shown of a finished run beside its figures: what happened on the way."""

from __future__ import annotations

import io

from rich.console import Console

from autoft.cli.show import show_result
from autoft.trainer.events import Note, Recovered
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation, Measured, RunResult


def test_recoveries_restarts_and_warnings_are_told() -> None:
    recovered = Recovered(step=7, change="micro_batch", micro_batch=2, reason="CUDA out of memory")
    result = RunResult(
        autoft_version="0",
        job=Job(model="m", recipe=Recipe(base_dtype="float32"), eval_steps=10, metric="number_match"),
        base="m",
        finished_at="2026-01-01T00:00:00+00:00",
        seconds={"train": 60.0},
        steps=40,
        tokens=4000,
        trained_tokens=1000,
        rows=100,
        rows_left_out=0,
        trainable_params=10,
        total_params=100,
        losses=((1, 2.0),),
        predicted=None,
        measured=Measured(peak_bytes=2**30, step_time_s=1.5, tokens_per_s=66.0, trained_tokens_per_s=16.0),
        before=Evaluation(rows=10, loss=2.0, number_match=0.1),
        after=Evaluation(rows=10, loss=1.0, number_match=0.4),
        sample=None,
        system_prompt=None,
        hardware="a card",
        versions={},
        artifacts={},
        best_step=30,
        events=(
            {"event": "recovered", **recovered.to_dict()},
            {"event": "resumed", "step": 20},
            {"event": "of a later version"},
            {"event": "note", **Note(text="step 33: the loss jumped", warning=True).to_dict()},
            *[{"event": "note", "text": f"note {number}", "warning": False} for number in range(12)],
        ),
    )
    file = io.StringIO()
    show_result(result, "runs/m", Console(file=file, width=100))
    shown = [line.strip() for line in file.getvalue().splitlines()]
    for line in (
        "Out of memory at step 7 (CUDA out of memory): going on with micro-batches of 2 rows",
        "Going on from step 20",
        "Warning: step 33: the loss jumped",
        "and 3 more, all in result.json",
        "Kept: the weights of step 30, the best by number_match",
        "last number right      10.0%    40.0%",
    ):
        assert line in shown
