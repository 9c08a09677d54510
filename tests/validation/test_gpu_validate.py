"""The validation on a GPU: its cases, its summary, and the whole of it on tiny models on the CPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Gpu

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_validate")


def test_the_cases_cover_what_they_must(validate) -> None:
    cases = validate.read_cases()
    assert len({case["id"] for case in cases}) == len(cases) >= 40

    def values(key: str) -> set[Any]:
        return {case[key] for case in cases}

    assert values("method") == {"lora", "qlora"}
    assert values("attention") == {"sdpa", "eager"}
    assert sum(case.get("packing", False) for case in cases) >= 3
    assert any(case.get("quant_type") == "int8" for case in cases)
    assert any(case.get("offload_checkpoints") for case in cases)
    assert values("optimizer") == {"adamw_torch", "adamw_8bit", "paged_adamw_8bit"}
    assert values("gradient_checkpointing") == {False, True}
    assert (min(values("seq_len")), max(values("seq_len"))) == (512, 8192)
    assert (min(values("micro_batch")), max(values("micro_batch"))) == (1, 8)


@pytest.mark.slow
def test_cases_can_be_estimated_with_and_without_a_cap(validate, tmp_path) -> None:
    """The first of each shape, in the other ways every fourth."""
    predict = validate.Predictor(gpu_from_profile("h100-80gb"), tmp_path)
    cases = validate.read_cases()
    first = {case["shape"]: case for case in reversed(cases)}
    for case in [case for number, case in enumerate(cases) if case in first.values() or number % 4 == 0]:
        free = predict(case, None)
        assert (free["predicted"]["fits"], free["cap_bytes"]) == ("yes", None), case["id"]
    capped = predict(case, 8)
    assert capped["predicted"]["peak_allocated_bytes"] == free["predicted"]["peak_allocated_bytes"]
    assert capped["cap_bytes"] == 8 * 2**30 - free["predicted"]["context_bytes"]


@pytest.mark.slow
def test_a_smoke_run_measures_in_fresh_processes_and_goes_on_where_it_stopped(
    validate, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "smoke.json"
    words = [str(BENCHMARKS / "gpu_validate.py"), "--smoke", "--only", "tiny-lora", "--out", str(out)]

    def call() -> str:
        """The script, predicting in this process; each run that it measures is one of its own all the same."""
        monkeypatch.setattr(sys, "argv", words)
        validate.main()
        return str(capsys.readouterr().out)

    done = subprocess.run([sys.executable, *words, "--minutes", "0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"{out}: nothing has been measured yet"
    first = call()
    record = json.loads(out.read_text())
    free, small, large = (next(r for r in record["runs"] if r["cap_gib"] == cap) for cap in (None, 0.1, 8))
    assert set(free["predicted"]["phases"]) - set(free["measured"]["phases"]) == {"evaluation", "save"}
    # the growth of a process holds at least the tensors, and not many times as much
    assert 0.3 < free["predicted"]["peak_allocated_bytes"] / free["measured"]["peak_allocated_bytes"] < 1.1
    # on a CPU the cap is on addresses: a thread that finds its allocator busy takes 128 MiB of them, in loading too
    assert small["predicted"]["fits"] == "no"
    assert small["measured"]["died_in"] in ("load", "forward of step 1")
    assert (large["predicted"]["fits"], "died_in" in large["measured"]) == ("yes", False)
    assert free["measured"]["step_time_s"] > 0
    assert (free["alone"], large["alone"]) == (True, False)
    assert "1 recipes on" in first
    written = out.stat().st_mtime_ns
    assert call() == first
    assert out.stat().st_mtime_ns == written


def _run(cap: float | None, fits: str, name: str = "a", **measured: Any) -> dict[str, Any]:
    phases = {"load": 900, "forward": 1000}
    predicted = {
        "peak_allocated_bytes": 1010, "peak_reserved_bytes": 1200, "phases": phases, "fits": fits,
        "step_time_s": {"lower": 1.0, "upper": 2.0},
    }  # fmt: skip
    whole = {"peak_allocated_bytes": 1000, "peak_reserved_bytes": 1200, "phases": phases, "step_time_s": 1.5}
    taken = {"phases": {"load": 900}, **measured} if "died_in" in measured else {**whole, **measured}
    return {"case": {"id": name}, "cap_gib": cap, "predicted": predicted, "measured": taken}


def test_the_summary_counts_errors_ranges_and_deaths(validate) -> None:
    runs = [
        _run(None, "yes"),
        _run(None, "yes", "b", peak_allocated_bytes=2020, step_time_s=3.0),
        _run(8, "yes", died_in="load"),
        _run(12, "tight", retries=3),
        _run(16, "no", died_in="forward of step 2"),
        _run(24, "no"),
        _run(24, "yes", error="broken"),
    ]
    found = validate.summary(runs)
    assert found["errors"]["peak_allocated_bytes"] == {"median": 0.255, "worst": -0.5, "worst_run": "b"}
    assert found["errors"]["peak_reserved_bytes"]["worst"] == 0
    assert found["time_in_range"] == [1, 2]
    assert found["fits"] == {
        "yes": {"lived": 0, "retried": 0, "died": 1},
        "tight": {"lived": 0, "retried": 1, "died": 0},
        "no": {"lived": 1, "retried": 0, "died": 1},
    }
    assert found["wrong"] == ["a under 8 GiB", "a under 24 GiB"]
    assert found["failed"] == {"a under 24 GiB": "broken"}


def test_caps_are_of_smaller_cards_only(validate, tmp_path) -> None:
    def caps(name: str) -> list[float]:
        gpu: Gpu = gpu_from_profile(name)
        return list(validate.Predictor(gpu, tmp_path).caps_gib)

    assert caps("rtx-4060") == []
    assert caps("t4") == [8, 12]
    assert caps("h100-80gb") == [8, 12, 16, 24]


def test_random_weights_load_into_the_model_they_are_named_for(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shapes = importlib.import_module("shapes")
    import torch
    import transformers

    folder = shapes.write_weights("tiny-qwen3", tmp_path / "tiny")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert all(bool((p == 1).all()) for name, p in model.named_parameters() if "norm" in name)
    assert 0.019 < model.get_input_embeddings().weight.float().std() < 0.021
