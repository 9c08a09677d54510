"""How records look at 40, 80 and 120 columns: runs, machines, evaluations, histories, findings, in their golden files.

tests/data has a run of the starter and a probe. `AUTOFT_GOLDEN=1 python -m pytest tests/cli/test_record_screens.py`
writes the files again: look at what git shows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autoft.cli import doctor, event_words, history, watch
from autoft.cli.bench import show_bench
from autoft.cli.show import show_judgement, show_result
from autoft.cli.show_machine import show_machine
from autoft.planner.history.past_runs import PastRun
from autoft.profiles.bench_store import Bench
from autoft.profiles.hardware import Hardware
from autoft.trainer.doctor.finding import Finding
from autoft.trainer.evaluation.judge import Change, General, Judgement, Variant
from autoft.trainer.events import Evaluated, Finished, Note, Recovered, Rehearsed, Resumed, Saved, Stage, Stopped
from autoft.trainer.report.model_card import model_card
from autoft.trainer.result import RunResult
from tests.cli.test_screens import check

DATA = Path(__file__).parent.parent / "data"
MIB = 2**20


def result() -> RunResult:
    return RunResult.from_dict(json.loads((DATA / "starter-result.json").read_text(encoding="utf-8")))


def finished(console: Console) -> None:
    show_result(result(), "runs/starter", console)


def card(console: Console) -> None:
    console.file.write(model_card(result(), "starter", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"))


def machine(console: Console) -> None:
    record = json.loads((DATA / "probe.json").read_text(encoding="utf-8"))
    benches = [Bench.from_dict(bench) for bench in record.pop("bench")]
    show_machine(Hardware.from_dict(record), console)
    show_bench([(None, bench) for bench in benches], console)


def evaluated(console: Console) -> None:
    run = result()
    assert run.before is not None
    quantized = replace(run.after, loss=0.31, perplexity=1.363, exact_match=0.61)
    judgement = Judgement(
        data="held-out.jsonl",
        before=run.before,
        after=run.after,
        samples=(run.sample,) if run.sample else (),
        changes={"loss": Change(lower=-2.31, upper=-1.87), "exact_match": Change(lower=0.66, upper=0.87)},
        variants=(Variant(name="nf4", evaluation=quantized, changes={}),),
        general=General(rows=40, before=1.922, after=1.951, change=Change(lower=0.004, upper=0.055)),
    )
    show_judgement(judgement, console)


def past_runs(console: Console) -> None:
    mine: dict[str, Any] = {
        "circumstances": {}, "versions": {"autoft": "0.1.0"}, "model": "qwen2.5-1.5b-instruct", "finished": True,
        "recipe": {"method": "qlora", "quant_type": "nf4", "rank": 16, "micro_batch": 4, "seq_len": 1024},
    }  # fmt: skip
    runs = [
        PastRun(
            **mine, at="2026-11-30T18:00:00+00:00", device="GPU-1", device_name="NVIDIA GeForce RTX 3060",
            predicted_peak_bytes=5200 * MIB, measured_peak_bytes=5210 * MIB, predicted_step_lower_s=0.8,
            predicted_step_upper_s=1.4, measured_step_s=1.02, measured_tokens_per_s=4000.0, steps=300,
        ),
        PastRun(
            **{**mine, "finished": False}, at="2026-11-29T09:30:00+00:00", device="GPU-1",
            device_name="NVIDIA GeForce RTX 3060", predicted_peak_bytes=11_000 * MIB,
        ),
        PastRun(
            **{**mine, "model": "a-model-with-a-name-that-is-rather-long"}, at="2026-11-28T07:00:00+00:00",
            device="cpu", device_name="AMD EPYC", measured_peak_bytes=900 * MIB, measured_step_s=12.5, steps=8,
        ),
    ]  # fmt: skip
    history._show(runs, console)


def findings(console: Console) -> None:
    for finding in (
        Finding(name="driver", status="ok", found="580.95, CUDA 13.0, answers in 0.1 s"),
        Finding(name="disk", status="warning", found="3.1 GiB free", fix="free 4 GiB, or -o a folder on another disk"),
        Finding(
            name="torch", status="failed", found="built for the CPU, and there is a GPU",
            fix="pip install torch --index-url ... (CUDA 13.0)",
        ),
        Finding(name="nccl", status="skipped", found="one GPU"),
    ):  # fmt: skip
        console.print(doctor.line(finding))


def watched(console: Console) -> None:
    gpu = {
        "index": 0, "used_bytes": 9000 * MIB, "total_bytes": 12_288 * MIB, "power_w": 168.4, "power_limit_w": 170.0,
        "temperature_c": 71, "busy_percent": 98, "sm_clock_mhz": 1807, "throttle": ("power limit",),
    }  # fmt: skip
    host = {"ram_total_bytes": 32_000 * MIB, "ram_available_bytes": 21_000 * MIB}
    sample = {"at": "2026-11-30T18:00:00+00:00", "gpus": [gpu], "no_gpu_reason": None, "host": host}
    console.print(watch._table(sample, console.width))
    console.print(watch._line(sample), soft_wrap=True)


def events(console: Console) -> None:
    run = result()
    for event in (
        Stage(name="model", detail="qwen2.5-1.5b-instruct"),
        Rehearsed(micro_batch=4, tokens=1024, peak_bytes=5210 * MIB, predicted_bytes=5200 * MIB, seconds=2.1),
        Evaluated(when="before", step=0, evaluation=run.after),
        Saved(step=100, bytes=71 * MIB, seconds=0.4),
        Recovered(step=112, change="micro_batch", micro_batch=2, reason="CUDA out of memory"),
        Note(text="GPU 0 is slowed by heat", warning=True),
        Stopped(step=120, reason="stopped by SIGINT", resumable=True),
        Resumed(step=100, skipped=("step-00000120: a file is cut short",)),
        Finished(steps=300, seconds=412.0),
    ):
        console.print("\n".join(event_words.lines(event)), markup=False)


SCREENS: tuple[Callable[[Console], None], ...] = (
    finished, card, machine, evaluated, past_runs, findings, watched, events,
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen.__name__)
def test_the_screen_of_a_record_looks_as_it_did(screen: Callable[[Console], None], width: int) -> None:
    file = io.StringIO()
    screen(Console(file=file, width=width, highlight=False))
    check(screen.__name__.replace("_", "-"), width, file.getvalue())
