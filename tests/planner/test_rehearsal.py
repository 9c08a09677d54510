"""The rehearsal against runs that other people measured, and what must hold of any."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import transformers

from autoft.errors import FileFormatError
from autoft.planner.kernels.attention import attention_backend
from autoft.planner.kernels.rules import INSTALLED_TORCH, Device
from autoft.planner.memory.allocator import Allocator
from autoft.planner.memory.replay import replay
from autoft.planner.plan.cases import estimates, read_cases
from autoft.planner.rehearsal.rehearse import rehearse
from autoft.profiles.hardware import Hardware
from autoft.trainer.recipe import Recipe
from tests.support.machines import HOST

GIB = 2**30
HERE = Path(__file__).parent.parent / "validation"
BF16 = {"method": "lora", "autocast": True, "loss": "logits", "micro_batch": 2, "seq_len": 64, "rank": 4}


@pytest.fixture(scope="module")
def compared():
    """(id, predicted, measured) of each measured run."""
    found = []
    for name in ("t4.jsonl", "rtx4080.jsonl"):
        rows = [json.loads(line) for line in (HERE / name).read_text().splitlines()]
        predicted = estimates(read_cases(HERE / name), Hardware(host=HOST, no_gpu_reason="none"), None, None)
        found += [(row["id"], e, row["measured"]) for row, (_, _, e) in zip(rows, predicted, strict=True)]
    return found


def test_allocated_is_met_within_one_percent(compared) -> None:
    off = [abs(e.peak_allocated_bytes / m["peak_allocated_bytes"] - 1) for _, e, m in compared]
    assert statistics.median(off) < 0.0005
    assert max(off) < 0.01


def test_peaks_of_the_phases_are_met_within_one_percent(compared) -> None:
    for phase in ("forward", "backward", "optimizer"):
        key = f"peak_{phase}_bytes"
        assert max(abs(e.phases[phase] / m[key] - 1) for _, e, m in compared if key in m) < 0.01


def test_reserved_is_met_within_seven_percent(compared) -> None:
    off = [abs(e.peak_reserved_bytes / m["peak_reserved_bytes"] - 1) for _, e, m in compared]
    assert statistics.median(off) < 0.01
    assert max(off) < 0.07


def test_runs_in_16_bits_are_met_to_the_byte(compared) -> None:
    """Their loading leaves nothing to chance, and cuBLAS takes its workspaces where the first product does."""
    for name, estimate, measured in compared:
        if name.startswith("t4") and "fp16" in name:
            assert estimate.peak_allocated_bytes == measured["peak_allocated_bytes"]
            assert estimate.peak_reserved_bytes == measured["peak_reserved_bytes"]


def test_trained_weights_are_counted_as_they_were(compared) -> None:
    assert all(e.trainable_params == m["trainable_params"] for _, e, m in compared if "trainable_params" in m)


def test_components_add_up_and_allocated_reserved_device_are_in_order(compared) -> None:
    for _, estimate, _ in compared:
        assert sum(estimate.components.values()) == estimate.peak_allocated_bytes
        assert estimate.peak_allocated_bytes <= estimate.peak_reserved_bytes <= estimate.device_bytes


def test_nine_in_ten_measured_steps_lie_in_their_ranges(compared) -> None:
    ranges = [(e.step_time_s, m["step_time_s"]) for _, e, m in compared]
    assert sum(r.lower <= step <= r.upper for r, step in ranges) >= 0.9 * len(ranges)
    assert max(r.upper / r.lower for r, _ in ranges) <= 2.5


SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "num_hidden_layers": 12,
}
LLAMA = transformers.AutoConfig.for_model("llama", **(SMALL | {"intermediate_size": 128, "num_hidden_layers": 2}))


def test_the_estimate_follows_the_trainer_s_builder(monkeypatch) -> None:
    import torch

    import autoft.planner.rehearsal.step as ghost
    from autoft.trainer.model.build import build_model

    def halved(*args, **kwargs):
        model = build_model(*args, **kwargs)
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.to(torch.bfloat16)
        return model

    recipe = Recipe.from_dict({**BF16, "optimizer": "adamw_torch", "rank": 64})
    whole = replay(rehearse(recipe, LLAMA, Device((8, 6)), depth=None), Allocator()).components
    monkeypatch.setattr(ghost, "build_model", halved)
    half = replay(rehearse(recipe, LLAMA, Device((8, 6)), depth=None), Allocator()).components
    assert (half["adapter"], half["optimizer"]) == (whole["adapter"] // 2, whole["optimizer"] // 2)


@pytest.mark.parametrize(
    ("capability", "release", "dtype", "head_dim", "grouped", "masked", "backend"),
    [
        ((8, 0), (2, 13), "bfloat16", 64, True, False, "flash"),
        ((8, 0), (2, 14), "bfloat16", 64, True, False, "flash"),
        ((8, 0), (2, 13), "bfloat16", 64, False, True, "efficient"),
        ((8, 0), (2, 13), "bfloat16", 64, True, True, "math"),
        ((8, 0), (2, 14), "bfloat16", 64, True, True, "efficient"),
        ((8, 0), (2, 14), "bfloat16", 71, False, True, "math"),
        ((8, 9), (2, 13), "float32", 64, True, False, "math"),
        ((8, 9), (2, 14), "float32", 64, True, False, "efficient"),
        ((8, 9), (2, 14), "float32", 70, False, False, "math"),
        ((8, 9), (2, 13), "float32", 64, False, False, "efficient"),
        ((7, 5), (2, 13), "float16", 64, False, False, "efficient"),
        ((7, 5), (2, 13), "float16", 64, True, False, "math"),
        ((7, 5), (2, 14), "float16", 64, True, False, "efficient"),
        ((7, 5), (2, 14), "float32", 71, False, False, "efficient"),
        ((7, 5), (2, 14), "bfloat16", 64, False, False, "math"),
    ],
)
def test_attention_takes_the_kernel_that_cuda_would(
    capability, release, dtype, head_dim, grouped, masked, backend
) -> None:
    import torch

    found = attention_backend(
        Device(capability, torch=release),
        dtype=getattr(torch, dtype),
        head_dim=head_dim,
        value_dim=head_dim,
        heads=4,
        key_heads=2 if grouped else 4,
        grouped=grouped,
        masked=masked,
    )
    assert found == backend


def test_one_key_head_for_all_is_taken_unasked_from_torch_2_14_on() -> None:
    import torch

    def found(release):
        return attention_backend(
            Device((8, 0), torch=release), dtype=torch.bfloat16, head_dim=64, value_dim=64, heads=4, key_heads=1,
            grouped=False, masked=False,
        )  # fmt: skip

    assert (found((2, 13)), found((2, 14))) == ("math", "flash")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":1: no JSON"),
        ("{}", ":1: no model"),
        ('{"model": "m", "sequence": 3}', "no setting 'sequence'"),
        ('{"model": "m", "sdpa_backend": "fast"}', "sdpa_backend 'fast'"),
        ('{"model": "m", "torch": "new"}', "torch 'new': not a version"),
        ('{"model": "m", "method": "qlor"}', "method = 'qlor' is not known"),
        ("", "no case in it"),
    ],
)
def test_a_bad_case_is_told_by_line_and_field(tmp_path, line, said) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(line)
    with pytest.raises(FileFormatError, match=said):
        read_cases(path)


@pytest.mark.parametrize(
    ("line", "release"),
    [
        ('{"model": "m", "torch": "2.6.0+cu124"}', (2, 6)),
        ('{"stack": "torch 2.14.0+cu130, peft 0.20.0", "case": {"model": "m"}}', (2, 14)),
        ('{"stack": "torch 2.14.0", "case": {"model": "m", "torch": "2.4"}}', (2, 4)),
        ('{"model": "m"}', INSTALLED_TORCH),
    ],
)
def test_a_case_s_own_release_of_torch_is_planned_for(tmp_path, line, release) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(line)
    assert read_cases(path)[0].torch == release


def test_a_case_may_leave_to_the_planner_how_it_is_quantized(tmp_path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"model": "m", "method": "qlora", "experts_4bit": true}')
    assert read_cases(path)[0].pins == {"method": "qlora", "experts_4bit": True}
