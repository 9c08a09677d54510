"""Rehearsals of packed rows, 8-bit bases, FlashAttention-2 and offloaded checkpoints: figures made by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from autoft.planner.allocator import Allocator
from autoft.planner.ghost import Rehearsal, find_depth, rehearse
from autoft.planner.kernels import Device
from autoft.planner.memory import replay
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


VARIANTS = [{"packing": True}, {"packing": True, "gradient_checkpointing": True}]


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
