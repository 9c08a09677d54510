"""Plans tried on capped memory: the whole of it on a tiny model on the CPU, and what counts as told."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType
from typing import Any

import pytest

from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Hardware
from tests.validation.test_gpu_validate import BENCHMARKS


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_plans")


@pytest.mark.slow
def test_a_smoke_run_takes_the_plan_and_the_nearest_that_is_too_large(plans, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_plans.py", "--smoke"])
    monkeypatch.setattr(plans, "REJECTS", 1)
    plans.main()
    found = json.loads(capsys.readouterr().out)
    (plan,) = found["plans"]
    chosen, reject = plan["runs"]
    assert found["as_told"]
    assert (chosen["predicted"]["fits"], reject["predicted"]["fits"]) == ("yes", "no")
    assert chosen["measured"]["peak_allocated_bytes"] > 0
    assert "died_in" in reject["measured"]
    assert reject["predicted"]["device_bytes"] > plan["cap_gib"] * 2**30 > chosen["predicted"]["device_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 5])
def test_a_case_has_a_plan_and_two_rejects(plans, tmp_path, number: int) -> None:
    """Of a card that stands for a smaller one."""
    case = plans.CASES[number]
    hardware: Hardware = plans.replace(plans.detect(), gpus=(gpu_from_profile("h100-80gb"),))
    found = plans.planned(case, hardware, tmp_path / "configs")
    chosen, *rejects = found["runs"]
    assert chosen["predicted"]["fits"] == "yes"
    assert [run["predicted"]["fits"] for run in rejects] == ["no", "no"]
    assert chosen["cap_bytes"] < case.cap_gib * 2**30


def test_what_counts_as_told(plans) -> None:
    def run(fits: str, **measured: Any) -> dict[str, Any]:
        return {"predicted": {"fits": fits}, "measured": measured}

    assert plans.as_told(run("yes", peak_allocated_bytes=1))
    assert plans.as_told(run("no", died_in="load"))
    assert not plans.as_told(run("yes", died_in="load"))
    assert not plans.as_told(run("no", peak_allocated_bytes=1))
    assert not plans.as_told(run("no", error="broken"))
