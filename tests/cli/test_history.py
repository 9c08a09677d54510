"""`autoft history` and what earlier runs make of a plan, with real runs of a tiny model."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.planner.history import past_runs
from autoft.planner.history.past_runs import PastRun, past_run
from autoft.planner.plan.record import Plan, read_plan
from autoft.profiles.detect import detect, gpu_from_profile
from autoft.trainer.result import Predicted, RunResult
from autoft.trainer.runtime.environment import of_child
from tests.conftest import write_jsonl
from tests.planner.test_history import RUN

SETTINGS = ("--gpu", "cpu", "--set", "base_dtype=float32", "--set", "max_new_tokens=0", "--set", "max_steps=10")


def test_a_run_is_kept_shown_beside_the_next_plan_exported_and_cleared(autoft, tiny_model, data_file, tmp_path) -> None:
    past_runs.path().write_bytes(b"not a database" * 100)
    done = autoft("run", tiny_model, "--data", data_file, "-o", tmp_path / "out", *SETTINGS, "--json")
    assert done.code == 0, done.err
    assert "the history of runs is damaged: put aside as" in " ".join(done.err.split())
    result = RunResult.from_dict({k: v for k, v in json.loads(done.out).items() if k != "output"})
    plan = read_plan(tmp_path / "out" / "plan.toml")
    assert plan.correction is None
    (run,) = past_runs.runs()
    assert (run.finished, run.model, run.recipe) == (True, str(tiny_model), plan.job.recipe.to_dict())
    assert (run.measured_peak_bytes, run.measured_step_s) == (result.measured.peak_bytes, result.measured.step_time_s)
    assert (run.predicted_peak_bytes, run.steps) == (plan.estimate.peak_allocated_bytes, 10)

    again = tmp_path / "again.toml"
    shown = autoft("plan", tiny_model, "--data", data_file, "-o", again, *SETTINGS, "--explain")
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "From runs here, memory: predicted" in text
    assert "1 run of this recipe here measured" in text
    assert "How each figure comes about" in text
    assert f"times the prediction: {tiny_model}, ended {run.at[:10]}" in text
    corrected = read_plan(again)
    assert corrected.correction is not None
    assert corrected.correction.device_bytes == pytest.approx(
        corrected.estimate.device_bytes * result.measured.peak_bytes / plan.estimate.peak_allocated_bytes, abs=1
    )
    memory = [getattr(p.estimate, name) for p in (plan, corrected) for name in ("device_bytes", "fits", "components")]
    assert memory[:3] == memory[3:], "the prediction stays what it was"
    told = json.loads(autoft("plan", tiny_model, "--data", data_file, *SETTINGS, "--explain", "--json").out)
    figures = {figure["figure"]: figure["bytes"] for figure in told.pop("explanation")}
    assert Plan.from_dict(told).correction.memory == corrected.correction.memory
    assert figures["peak_allocated_bytes"] == corrected.estimate.peak_allocated_bytes
    assert figures["device_bytes"] == corrected.estimate.device_bytes

    listed = json.loads(autoft("history", "--json").out)
    assert listed == {"file": str(past_runs.path()), "runs": [run.to_dict()]}
    for suffix in ("json", "csv"):
        assert autoft("history", "--export", tmp_path / f"runs.{suffix}").code == 0
    assert json.loads((tmp_path / "runs.json").read_text(encoding="utf-8")) == listed["runs"]
    (row,) = csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text(encoding="utf-8")))
    assert (int(row["measured_peak_bytes"]), json.loads(row["recipe"])) == (run.measured_peak_bytes, run.recipe)

    refused = autoft("history", "--clear", "--json")  # no terminal to ask on
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    cleared = json.loads(autoft("history", "--clear", "--yes", "--json").out)
    assert cleared == {"deleted": 1, "put_aside": [str(path) for path in past_runs.set_aside()]}
    assert json.loads(autoft("history", "--json").out)["runs"] == []

    # what was predicted for another device is no prediction of this one
    predicted = Predicted(peak_bytes=1, step_time_lower_s=1.0, step_time_upper_s=2.0, method="rehearsal")
    here = detect()
    assert past_run(plan, predicted, here, None).predicted_peak_bytes == plan.estimate.peak_allocated_bytes
    elsewhere = replace(here, host=replace(here.host, cpu="another"))
    assert past_run(plan, predicted, elsewhere, None).predicted_peak_bytes is None
    card = replace(gpu_from_profile("rtx-4090"), origin="nvml", index=0, uuid="GPU-1", name="GeForce RTX 4090")
    there = replace(here, gpus=(card,))
    for card_name, known in (
        ("GeForce RTX 4090", True),
        ("NVIDIA GeForce RTX 4090", True),
        ("Tesla T4", False),
    ):
        on_gpu = replace(plan, card=card_name, job=replace(plan.job, device="cuda"))
        kept = past_run(on_gpu, predicted, there, None)
        assert (kept.device, kept.predicted_peak_bytes is not None) == ("GPU-1", known)


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of address space elsewhere")
def test_a_run_that_ran_out_of_memory_is_kept_and_the_next_plan_warns(autoft, tiny_model, tmp_path) -> None:
    """Address space may grow by half a GiB: the scores of attention, batch x heads x tokens^2, are 320 MiB each."""
    import resource

    from autoft.trainer.loop import engine  # noqa: F401 - libraries are there before the limit is

    data = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "x" * 200, "completion": "y" * 210}] * 110)
    plan = tmp_path / "plan.toml"
    words = ("--set", "attention=eager", "--set", "micro_batch=100", "--set", "accumulation=1", "--set", "eval_rows=0")
    words = (*SETTINGS, *words, "--set", "max_steps=2")
    assert autoft("plan", tiny_model, "--data", data, "-o", plan, *words).code == 0
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, before[1]))
    try:
        done = autoft("run", plan, "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert done.code == 0, done.err
    happened = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["events"]
    assert (happened[0]["event"], happened[0]["micro_batch"]) == ("recovered", 50)
    (run,) = past_runs.runs()
    assert (run.finished, run.measured_peak_bytes, run.recipe["micro_batch"]) == (False, None, 100)
    again = autoft("plan", tiny_model, "--data", data, *words)
    assert "a run predicted to need no more than this ran out of memory here on" in " ".join(again.out.split())
    shown = " ".join(autoft("history").out.split())
    assert "ran out of memory" in shown
    assert "predicted" in shown


def several() -> list[PastRun]:
    return [
        replace(RUN, at=f"2026-11-2{n}T10:00:00+00:00", model=f"some-organization/a-model-with-a-long-name-{n}")
        for n in range(3)
    ] + [replace(RUN, device="GPU-1", device_name="NVIDIA GeForce RTX 4090", predicted_peak_bytes=None, finished=False)]


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_the_list_fits_the_width_newest_first(autoft, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    empty = autoft("history")
    assert (empty.code, "No runs yet" in empty.out) == (0, True)
    for run in several():
        past_runs.add(run)
    shown = autoft("history")
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= width
    text = " ".join(shown.out.split())
    assert text.index("2026-11-22") < text.index("2026-11-21") < text.index("2026-11-20")
    for part in ("predicted 1.0 GiB predicted 1.0 s to 4.0 s", "NVIDIA GeForce RTX 4090", "ran out of memory"):
        assert part in text or width < 100


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_on_a_terminal_it_asks_before_it_deletes() -> None:
    past_runs.add(RUN)
    for answer, code, left in ((b"n\n", 130, [RUN]), (b"y\n", 0, [])):
        ours, theirs = os.openpty()
        os.write(ours, answer)
        command = [sys.executable, "-m", "autoft", "history", "--clear"]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False, env=of_child())
        os.close(ours)
        os.close(theirs)
        assert (done.returncode, past_runs.runs()) == (code, left)
        assert f"Delete 1 run from {past_runs.path()}?" in done.stderr
        assert done.stdout == ("" if left else "1 run deleted\n")


def test_one_device_alone_is_listed_and_cleared(autoft) -> None:
    for run in several():
        past_runs.add(run)
    assert len(json.loads(autoft("history", "--device", "rtx 4090", "--json").out)["runs"]) == 1
    cleared = autoft("history", "--device", "4090", "--clear", "--yes")
    assert (cleared.code, cleared.out) == (0, "1 run deleted\n")
    assert len(past_runs.runs()) == 3


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--export", "runs.xlsx"), "--export runs.xlsx: neither .json nor .csv"),
        (("--export", "no/such/runs.csv"), "--export no/such/runs.csv: not a file that can be written"),
        (("--export", "runs.csv", "--clear"), "--export and --clear: one at a time"),
        (("--yes",), "--yes belongs to --clear"),
        (("--device", "4090"), "--device 4090: no run was on such a device"),
    ],
)
def test_bad_options_are_one_line_with_what_to_do(autoft, words, what, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    past_runs.add(RUN)
    done = autoft("history", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"Error: {what}\nTo fix: ")
    assert past_runs.runs() == [RUN]
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_cannot_be_used_stops_neither_plan_nor_run(autoft, tiny_model, data_file, tmp_path) -> None:
    past_runs.path().mkdir()
    words = (*SETTINGS[:-1], "max_steps=1")
    done = autoft("run", tiny_model, "--data", data_file, "-o", tmp_path / "out", *words)
    assert done.code == 0, done.err
    text = " ".join(done.err.split())
    assert "Note: the history of runs cannot be used:" in text
    assert "Note: this run is not in the history:" in text
    assert autoft("history").code == 2
