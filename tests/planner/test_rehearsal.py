"""The rehearsal against runs that other people measured, and against itself at full depth."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoft.errors import FileFormatError
from autoft.planner.allocator import Allocator
from autoft.planner.cases import estimates, read_cases
from autoft.planner.ghost import PLAIN, find_depth, rehearse
from autoft.planner.kernels import Device, attention_backend
from autoft.planner.memory import replay
from autoft.profiles.hardware import Hardware, Host
from autoft.trainer.recipe import Recipe

GIB = 2**30
HERE = Path(__file__).parent.parent / "validation"
HOST = Host(
    cpu="test", cores=2, ram_total_bytes=16 * GIB, ram_available_bytes=8 * GIB, disk_path="/", disk_free_bytes=GIB,
    bf16=True,
)  # fmt: skip
# Runs whose figures depend on what cannot be known: in which order transformers' four threads loaded the weights (the
# blocks that loading leaves decide the rests of later ones), and, for reserved, causes not found yet.
LOADED_BY_CHANCE = {"t4-smollm2-135m-nf4-flash-b2-s512-r32"}
RESERVED_NOT_EXPLAINED = {
    "t4-tinyllama-1.1b-chat-v1.0-fp16-eager-b2-s1024-r32",
    "t4-smollm2-135m-fp16-eager-b1-s4096-r32",
    "rtx4080-qwen2.5-0.5b-instruct_lora_s1024_b1_r16_steps3",
}
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
    off = {i: abs(e.peak_allocated_bytes / m["peak_allocated_bytes"] - 1) for i, e, m in compared}
    assert statistics.median(off.values()) < 0.001
    assert {i for i, error in off.items() if error > 0.01} <= LOADED_BY_CHANCE
    assert max(off.values()) < 0.02


def test_forward_and_backward_peaks_are_met_within_one_percent(compared) -> None:
    for phase in ("forward", "backward", "optimizer"):
        key = f"peak_{phase}_bytes"
        off = {i: abs(e.phases[phase] / m[key] - 1) for i, e, m in compared if key in m}
        assert {i for i, error in off.items() if error > 0.01} <= LOADED_BY_CHANCE


def test_reserved_is_met_within_seven_percent_where_loading_is_known(compared) -> None:
    off = {i: abs(e.peak_reserved_bytes / m["peak_reserved_bytes"] - 1) for i, e, m in compared}
    assert statistics.median(off.values()) < 0.02
    assert {i for i, error in off.items() if error > 0.06} <= LOADED_BY_CHANCE | RESERVED_NOT_EXPLAINED


def test_trained_weights_are_counted_as_they_were(compared) -> None:
    assert all(e.trainable_params == m["trainable_params"] for _, e, m in compared if "trainable_params" in m)


def test_components_add_up_and_allocated_reserved_device_are_in_order(compared) -> None:
    for _, estimate, _ in compared:
        assert sum(estimate.components.values()) == estimate.peak_allocated_bytes
        assert estimate.peak_allocated_bytes <= estimate.peak_reserved_bytes <= estimate.device_bytes


SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "num_hidden_layers": 12,
}
FAMILIES = {
    "llama": SMALL | {"intermediate_size": 128},
    "mistral": SMALL | {"intermediate_size": 128, "sliding_window": 32},
    "qwen2": SMALL | {"intermediate_size": 128},
    "qwen3": SMALL | {"intermediate_size": 128, "head_dim": 16},
    "gemma3_text": SMALL | {"intermediate_size": 128, "head_dim": 16, "sliding_window": 32, "num_hidden_layers": 18},
    "olmo2": SMALL | {"intermediate_size": 128},
    "phi3": SMALL | {"intermediate_size": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    "gpt_neox": {k: v for k, v in SMALL.items() if k != "num_key_value_heads"} | {"intermediate_size": 128},
    "granite": SMALL | {"intermediate_size": 128},
    "starcoder2": SMALL | {"intermediate_size": 128},
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_layers_stand_for_all(family: str, checkpointing: bool) -> None:
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    recipe = Recipe.from_dict({**BF16, "gradient_checkpointing": checkpointing})
    depth = find_depth(recipe, config)
    assert depth is not None
    assert depth.rehearsed < config.num_hidden_layers
    found = []
    for how in (depth, None):
        rehearsal = rehearse(recipe, config, Device((8, 9)), depth=how, loop=PLAIN)
        found.append((replay(rehearsal, Allocator()), [sorted(s for _, s in p.events) for p in rehearsal.phases]))
    assert found[0][0].allocated == found[1][0].allocated
    assert found[0][0].reserved == found[1][0].reserved
    assert found[0][0].phases == found[1][0].phases
    assert found[0][1] == found[1][1]


LLAMA = transformers.AutoConfig.for_model("llama", **(SMALL | {"intermediate_size": 128, "num_hidden_layers": 2}))


def allocated(recipe: Recipe) -> int:
    return replay(rehearse(recipe, LLAMA, Device((8, 6)), depth=None), Allocator()).allocated


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        Recipe,
        rank=st.integers(1, 64),
        micro_batch=st.integers(1, 8),
        seq_len=st.integers(1, 512),
        gradient_checkpointing=st.booleans(),
        autocast=st.booleans(),
        loss=st.just("logits"),
    ),
    st.sampled_from(["rank", "micro_batch", "seq_len"]),
)
def test_more_never_needs_less(recipe: Recipe, field: str) -> None:
    # a whole block of 512 bytes may be won or lost between two that are nearly alike
    assert allocated(replace(recipe, **{field: 2 * getattr(recipe, field)})) >= allocated(recipe)


def test_the_estimate_follows_the_trainer_s_builder(monkeypatch) -> None:
    import torch

    import autoft.planner.ghost as ghost
    from autoft.trainer.build import build_model

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
    ("capability", "dtype", "grouped", "masked", "backend"),
    [
        ((8, 0), "bfloat16", True, False, "flash"),
        ((8, 0), "bfloat16", False, True, "efficient"),
        ((8, 9), "float32", True, False, "math"),
        ((8, 9), "float32", False, False, "efficient"),
        ((7, 5), "float16", False, False, "efficient"),
        ((7, 5), "float16", True, False, "math"),
        ((7, 5), "bfloat16", False, False, "math"),
    ],
)
def test_attention_takes_the_kernel_that_cuda_would(capability, dtype, grouped, masked, backend) -> None:
    import torch

    found = attention_backend(
        Device(capability), dtype=getattr(torch, dtype), head_dim=64, value_dim=64, grouped=grouped, masked=masked
    )
    assert found == backend


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":1: no JSON"),
        ("{}", ":1: no model"),
        ('{"model": "m", "sequence": 3}', "no setting 'sequence'"),
        ('{"model": "m", "sdpa_backend": "fast"}', "sdpa_backend 'fast'"),
        ("", "no case in it"),
    ],
)
def test_a_bad_case_is_told_by_line_and_field(tmp_path, line, said) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(line)
    with pytest.raises(FileFormatError, match=said):
        read_cases(path)
