"""The rehearsal on the CPU against real steps, whose memory PyTorch's profiler tells: benchmarks/cpu_memory.py."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WITHIN_PERCENT = 0.5
QUICK = (
    "llama-lora-float32",
    "llama-qlora-two-micro-batches",
    "mistral-qlora-sliding-window",
    "gemma2-lora-eager",
    "gpt2-lora-dropout",
    "falcon-lora-one-key-head",
    "mixtral-lora",
    "stablelm-qlora-paged",
    "llama-lora-packed",
    "llama-lora-dft-packed",
    "llama-int8-checkpointed",
)


@pytest.fixture(scope="module")
def cpu_memory():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("cpu_memory")


def test_the_truth_is_exact_where_it_can_be_counted_by_hand(cpu_memory) -> None:
    with cpu_memory.recorded() as events:
        kept = torch.zeros(1000, 10)  # 40,000
        with torch.profiler.record_function("phase product"):
            product = kept.T @ kept  # 400
            product.mul_(product)
        with torch.profiler.record_function("phase dropped"):
            made = torch.empty(5, dtype=torch.uint8)
            del made, kept
        with torch.profiler.record_function("phase after"):
            after = torch.empty(7, dtype=torch.uint8)
    assert cpu_memory.peaks_by_phase(events, 40_000) == {"product": 40_400, "dropped": 40_405, "after": 407}
    assert after.numel() + product.numel() == 107


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("name", QUICK)
def test_every_peak_of_a_real_run_is_met(cpu_memory, name) -> None:
    row = cpu_memory.compared(cpu_memory.CASES[name], steps=2)
    off = {phase: figures["error_percent"] for phase, figures in row["phases"].items()}
    assert max(map(abs, off.values())) <= WITHIN_PERCENT, off
    assert abs(row["error_percent"]) <= WITHIN_PERCENT


def test_the_recorded_comparison_covers_enough_and_is_within_the_bar(cpu_memory) -> None:
    rows = json.loads((BENCHMARKS / "results/cpu_memory.json").read_text(encoding="utf-8"))["rows"]
    assert rows.keys() == cpu_memory.CASES.keys()
    assert len(rows) >= 14
    assert len({row["family"] for row in rows.values()}) >= 10
    assert max(abs(row["error_percent"]) for row in rows.values()) <= WITHIN_PERCENT
