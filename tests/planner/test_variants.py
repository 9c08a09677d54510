"""Rehearsals of packed rows, 8-bit bases, FlashAttention-2 and offloaded checkpoints: figures made by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from autoft.errors import ModelError
from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import Allocator
from autoft.planner.memory.host import host_parts
from autoft.planner.memory.replay import replay
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config

AMPERE = Device((8, 6))
BASE: dict[str, Any] = {"autocast": True, "loss": "fused", "micro_batch": 2, "seq_len": 96, "rank": 4}
# 12 layers, 4 heads over 2 key heads of 16, 64 wide
CONFIG = family_config("llama3")


def run(*, device: Device = AMPERE, config: Any = CONFIG, depth: bool = True, **settings: Any) -> Rehearsal:
    recipe = Recipe(**BASE | settings)
    return rehearse(recipe, config, device, depth=find_depth(recipe, config) if depth else None)


def made(rehearsal: Rehearsal) -> Counter[tuple[str, tuple[int, ...] | None, torch.dtype | None]]:
    """How often each (operation or kernel, shape, dtype) was made in the steps."""
    return Counter(
        (operation[0] if isinstance(operation, tuple) else str(operation), shape, dtype)
        for operation, shape, dtype in rehearsal.made.values()
    )


def allocated(rehearsal: Rehearsal) -> int:
    return replay(rehearsal, Allocator()).allocated


INT8 = {"method": "qlora", "quant_type": "int8"}
VARIANTS = [
    {"packing": True},
    {"packing": True, "gradient_checkpointing": True},
    {"attention": "flash_attention_2"},
    {"attention": "flash_attention_2", "packing": True, "gradient_checkpointing": True},
    INT8,
    INT8 | {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "offload_checkpoints": True},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_few_layers_stand_for_all(settings) -> None:
    short, full = run(**settings), run(**settings, depth=False)
    assert allocated(short) == allocated(full)
    assert short.work == full.work


def test_packed_rows_get_one_mask_and_the_kernel_that_takes_it() -> None:
    alone, packed = made(run()), made(run(packing=True))
    square = (2, 1, 96, 96)
    assert not any(shape == square for _, shape, _ in alone)
    steps = 2
    # one of booleans a step, made of a few; one of numbers for every layer
    assert packed[("aten.where.self", square, torch.bfloat16)] == 12 * steps
    kernels = {name for name, _, _ in packed if name.endswith("attention")}
    assert kernels == {"memory-efficient attention"}
    assert {name for name, _, _ in alone if name.endswith("attention")} == {"flash attention"}
    # transformers repeats the key heads beforehand: 4 of them
    assert packed[("memory-efficient attention", (2, 96, 4, 16), torch.bfloat16)] > 0


def test_a_mask_whose_rows_are_no_multiple_of_8_is_padded() -> None:
    assert made(run(packing=True, seq_len=92))[("aten.constant_pad_nd.default", (2, 1, 92, 96), torch.bfloat16)] == 24


def test_an_8_bit_base_takes_a_byte_a_weight_and_four_a_row() -> None:
    rehearsal = run(**INT8)
    weights = [w for w in rehearsal.weights if w.dtype == torch.int8]
    assert len(weights) == 12 * 7
    assert (
        sum(w.size for w in weights)
        == sum(w.params for w in weights)
        == 12 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160)
    )
    assert sum(sum(w.state) for w in weights) == 12 * 4 * (64 + 32 + 32 + 64 + 160 + 160 + 64)


def test_an_8_bit_product_passes_through_int32_and_float16() -> None:
    """192 tokens through gate and up, 64 wide to 160, in each of 12 layers and two steps."""
    found = made(run(**INT8))
    kernel = "product in int8"
    # the sums, then the product of outliers added; between them float16, and bfloat16 again
    assert found[(kernel, (192, 160), torch.int32)] == found[(kernel, (192, 160), torch.float16)] == 2 * 12 * 2
    assert found[("rows in int8", (192, 160), torch.int8)] == 12 * 2  # into down


def test_loading_rounds_each_weight_by_way_of_float16() -> None:
    load = run(**INT8).phases[0].events
    # the largest is an MLP's: 16 bits as read, 16 to be rounded, a scale a row, 8 to keep
    sizes = [int(size) for _, size in load]
    at = sizes.index(2 * 160 * 64)
    assert sizes[at : at + 6] in (
        [20480, 20480, 4 * 64, 10240, -20480, -20480],
        [20480, 20480, 4 * 160, 10240, -20480, -20480],
    )


def test_checkpointing_drops_what_8_bit_layers_read() -> None:
    whole, checkpointed = (
        replay(run(**INT8, gradient_checkpointing=again), Allocator()).components["activations"]
        for again in (False, True)
    )
    assert checkpointed < 0.4 * whole


FLASH = {"attention": "flash_attention_2"}


def test_flash_attn_takes_what_pytorch_s_own_flash_does() -> None:
    assert made(run(**FLASH)) == made(run())


def test_packed_rows_go_to_flash_attn_end_to_end_without_a_mask() -> None:
    found = made(run(**FLASH, packing=True))
    kernel = "flash attention of many lengths"
    assert not any(shape == (2, 1, 96, 96) for _, shape, _ in found)
    calls = 12 * 2
    assert found[(kernel, (192, 4, 16), torch.bfloat16)] == 4 * calls  # the output; gradients, for all heads at first
    assert found[(kernel, (4, 192), torch.float32)] == calls
    assert found[(kernel, (2,), torch.int32)] == calls  # one example of 256 tokens is assumed: where it begins and ends
    assert found[(kernel, (192 + 128, 4, 32), torch.float32)] == calls
    assert allocated(run(**FLASH, packing=True)) < allocated(run(packing=True))


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("bloom", "transformers cannot build a causal bloom model with flash_attention_2 attention: its code takes no"),
        ("falcon7b", "a step of falcon with these settings cannot be rehearsed"),
    ],
)
def test_a_model_that_takes_no_flash_attention_is_refused(family, said) -> None:
    with pytest.raises(ModelError, match=said):
        rehearse(Recipe(**BASE, **FLASH), family_config(family), AMPERE, depth=None)


def test_what_only_values_tell_is_said_to_be_assumed(autoft, tiny_model) -> None:
    words = ("--set", "attention=flash_attention_2", "--set", "packing=true", "--set", "quant_type=int8")
    done = autoft("estimate", tiny_model, "--gpu", "rtx3090", *words, "--json")
    assert "packed examples are assumed to have 256 tokens" in done.out
    assert "one column of a thousand is assumed to have outliers" in done.out


@pytest.mark.parametrize("gpu", ["cpu", "t4"])
def test_a_device_without_flash_attention_is_told_in_one_line(autoft, tiny_model, gpu) -> None:
    words = ("--gpu", gpu, "--set", "attention=flash_attention_2", "--set", "base_dtype=float16")
    refused = autoft("estimate", tiny_model, *words)
    assert refused.code == 2
    name = "cpu" if gpu == "cpu" else "t4"
    assert "flash_attention_2 needs a CUDA card of compute capability 8.0 or more, and " in refused.err
    assert name in refused.err.lower()
    assert "To fix: --set attention=sdpa" in refused.err


def test_a_plan_with_flash_attention_is_made_where_it_is_not_installed(autoft, tiny_model, data_file, tmp_path) -> None:
    words = ("--gpu", "rtx3090", "--set", "attention=flash_attention_2", "--set", "packing=true")
    done = autoft("plan", tiny_model, "--data", data_file, "-o", tmp_path / "plan.toml", *words)
    assert done.code == 0, done.err
    refused = autoft("run", tmp_path / "plan.toml", "-o", tmp_path / "out")
    assert refused.code == 2


def test_offloaded_checkpoints_leave_the_device_and_wait_on_the_host() -> None:
    """The hidden state before each of 12 layers: 2 x 96 x 64 values of 2 bytes, 24 KiB, in a pinned block of 32 KiB."""
    kept, offloaded = (run(gradient_checkpointing=True, offload_checkpoints=o) for o in (False, True))
    assert (kept.offloaded_bytes, offloaded.offloaded_bytes) == (0, 12 * 32 * 1024)
    assert host_parts(offloaded, 1000)["train"]["checkpoints, pinned"] == 12 * 32 * 1024
    assert host_parts(kept, 1000)["train"].keys() == {
        "Python and its libraries, an assumption",
        "paged optimizer state",
    }
    # the last layer's is back when its backward makes the peak
    freed = allocated(kept) - allocated(offloaded)
    assert 10 * 24 * 1024 <= freed <= 12 * 24 * 1024
    # each comes back once a step, in the backward
    hidden = ("aten.empty.memory_format", (2, 96, 64), torch.bfloat16)
    assert made(offloaded)[hidden] - made(kept)[hidden] == 12 * 2


def test_offloading_on_the_cpu_is_refused_in_one_line(autoft, tiny_model) -> None:
    words = ("--set", "gradient_checkpointing=true", "--set", "offload_checkpoints=true")
    refused = autoft("estimate", tiny_model, "--gpu", "cpu", *words)
    assert refused.code == 2
    assert "on the CPU they are there" in refused.err
    assert autoft("estimate", tiny_model, "--gpu", "rtx3090", *words[2:], "--json").code == 0
