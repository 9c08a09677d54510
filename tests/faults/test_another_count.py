"""A run that goes on with more or fewer processes than it began with: the same rows in each step, the same weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from autoft.cli.main import main
from autoft.errors import DoesNotFit, OptionError, Resumable
from autoft.planner.plan import recheck
from autoft.planner.plan.record import Plan, read_plan
from autoft.trainer.run.session import run
from autoft.trainer.storage.run_folder import unfinished
from tests.conftest import write_forty_rows
from tests.faults.test_resume import stopped_at


@pytest.fixture(scope="module")
def planned(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    data = write_forty_rows(folder / "data.jsonl")
    settings = (
        "max_steps=6", "learning_rate=0.01", "micro_batch=2", "dropout=0", "rank=4", "base_dtype=float32",
        "packing=false", "save_steps=1", "eval_rows=4", "max_new_tokens=0",
    )  # fmt: skip
    pinned = [word for setting in settings for word in ("--set", setting)]
    words = ("plan", tiny_model, "--data", data, "--gpu", "cpu", *pinned, "-o", folder / "plan.toml")
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    assert done.value.code == 0
    return read_plan(folder / "plan.toml")


@pytest.fixture
def plan_of(planned):
    """`plan_of(processes, accumulation)`"""

    def plan(num_gpus: int, accumulation: int) -> Plan:
        return replace(planned, job=replace(planned.job, num_gpus=num_gpus, accumulation=accumulation))

    return plan


@pytest.fixture(scope="module")
def undisturbed(planned, tmp_path_factory):
    """(folder, result) of a run in one process that goes through."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, run(replace(planned.job, accumulation=4), out, plan_toml="")


@pytest.mark.parametrize(("before", "after"), [((2, 2), 1), ((1, 4), 2)])
def test_another_number_of_processes_learns_the_same(autoft, plan_of, undisturbed, tmp_path, before, after):
    quiet, whole = undisturbed
    plan, out, threads = plan_of(*before), tmp_path / "out", torch.get_num_threads()
    with pytest.raises(Resumable):
        run(plan.job, out, plan_toml=plan.public().to_toml(), listener=stopped_at(3))

    done = autoft("resume", out, "--gpus", after)
    torch.set_num_threads(threads)
    assert done.code == 0, done.err
    assert f"{after} processes instead of {before[0]}: each step trains on the same rows" in " ".join(done.err.split())
    result = json.loads((out / "result.json").read_text())
    assert (result["job"]["num_gpus"], result["job"]["accumulation"]) == (after, 4 // after)
    assert read_plan(out / "plan.toml").job.num_gpus == after  # which a bare `resume` would have gone on with
    assert [step for step, _ in result["losses"]] == [step for step, _ in whole.losses]
    assert [loss for _, loss in result["losses"]] == pytest.approx([loss for _, loss in whole.losses], rel=1e-4)
    expected = load_file(quiet / "adapter_model.safetensors")
    for name, value in load_file(out / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_what_cannot_go_on_so_is_refused_and_the_run_stays_as_it_is(autoft, plan_of, tmp_path, monkeypatch):
    plan, out = plan_of(1, 2), tmp_path / "out"
    with pytest.raises(Resumable):
        run(plan.job, out, plan_toml=plan.public().to_toml(), listener=stopped_at(3))

    uneven = autoft("resume", out, "--gpus", 3)
    assert uneven.code == OptionError.exit_code
    assert "an optimizer step has 2 micro-batches, which 3 processes do not share evenly" in uneven.err
    assert "--gpus 1 or 2" in uneven.err

    usable = recheck._target
    monkeypatch.setattr(recheck, "_target", lambda *words: replace(usable(*words), available_bytes=2**20))
    too_large = autoft("resume", out, "--gpus", 2)
    assert too_large.code == DoesNotFit.exit_code
    assert "To fix: free memory, or resume without --gpus" in too_large.err
    assert read_plan(unfinished(out) / "plan.toml").job.num_gpus == 1
