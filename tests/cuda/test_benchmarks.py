"""The benchmarks for people with a GPU, on described cards: each part of the evidence run with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cuda.card import ROOT, TRITON, Card, Done

BENCHMARKS = ROOT / "benchmarks"
MINUTES = "14"
# What a Triton kernel computes is zeros here, so no loss is that of the base
IGNORED = (TRITON, "autoft.trainer.checks.gates:check_model")
FLOATS = str(2**20)  # larger results need not be right for what is asked here


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that the tests share."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def evidence(on_card, tmp_path, scratch) -> Callable[..., dict[str, Any]]:
    """`evidence("t4", "b")` runs that part with tiny models on the described card: its pieces."""

    def run(name: str, part: str) -> dict[str, Any]:
        card: Card = on_card(name, truth=True, ignore=IGNORED)
        out = tmp_path / "evidence.json"
        words = ("--smoke", "--parts", part, "--minutes", MINUTES, "--weights", scratch, "--out", out)
        done: Done = card.python(BENCHMARKS / "gpu_evidence.py", *words, env={"STANDIN_TRUTH_FLOATS": FLOATS})
        assert done.code == 0, done.err
        found = json.loads(out.read_text())["parts"][part]
        assert found["state"] == "done", done.err + done.out
        return dict(found["pieces"])

    return run


def test_recipes_take_the_memory_that_is_predicted(evidence) -> None:
    pieces = evidence("rtx4090", "b")
    assert set(pieces) == {"tiny-lora", "tiny-qlora"}
    for piece in pieces.values():
        predicted, measured = piece["predicted"], piece["measured"]
        assert piece["device"] == "cuda"
        assert predicted["peak_allocated_bytes"] == pytest.approx(measured["peak_allocated_bytes"], rel=1e-3)
        assert predicted["peak_reserved_bytes"] == pytest.approx(measured["peak_reserved_bytes"], rel=0.03)
        assert measured["device_bytes"] - measured["context_bytes"] >= measured["peak_reserved_bytes"]


def test_the_context_is_what_the_driver_takes_beside_the_reserved(evidence) -> None:
    """360 MiB: cards.txt has them for this card."""
    stages = evidence("rtx4090", "c")["context"]["stages"]
    assert [stage["after"] for stage in stages][:2] == ["a first tensor", "products"]
    assert {stage["nvml_bytes"] for stage in stages} == {360 * 2**20}


def test_the_chosen_plan_lives_under_a_cap_and_the_nearest_reject_dies(evidence) -> None:
    (piece,) = evidence("rtx4090", "d").values()
    chosen, reject = piece["runs"]
    assert (chosen["predicted"]["fits"], reject["predicted"]["fits"]) == ("yes", "no")
    assert "peak_allocated_bytes" in chosen["measured"]
    assert "died_in" in reject["measured"]
    assert chosen["as_told"]
    assert reject["as_told"]


def test_a_run_ends_and_a_killed_one_is_resumed_and_goes_on_where_memory_ends(evidence) -> None:
    pieces = evidence("t4", "e")
    run, killed = pieces["run"], pieces["killed and resumed"]
    assert run["code"] == killed["code"] == 0
    # every token counts as trained in a prediction, and here half of them are
    assert 0.6 < run["measured"]["peak_bytes"] / run["predicted"]["peak_bytes"] <= 1.001
    assert 2 < killed["killed_after_step"] < killed["steps"] == 8
    recovered = [event for event in killed["events"] if event["event"] == "recovered"]
    assert (recovered[0]["step"], recovered[0]["change"]) == (6, "micro_batch")


def test_a_step_is_timed_beside_trl_s(evidence) -> None:
    (piece,) = evidence("t4", "f").values()
    assert set(piece["pairs"][0]) == {"autoft", "trl"}
    assert all(figures["steps"] >= 1 for figures in piece["pairs"][0].values())


def test_doctor_and_bench_answer(evidence) -> None:
    pieces = evidence("t4", "a")
    assert {finding["name"] for finding in pieces["doctor"]["findings"]} >= {"driver", "torch", "CUDA", "Triton"}
    assert pieces["probe"]["gpus"][0]["name"] == "Tesla T4"
    assert [bench["key"] for bench in pieces["probe"]["bench"]]
