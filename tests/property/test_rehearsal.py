"""What holds of every recipe's estimate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import Allocator, ByteCounter
from autoft.planner.memory.replay import Memory, least_bytes, replay
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import Kept, find_depth, rehearse
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config

CONFIG = family_config("llama3", num_hidden_layers=6)
DEVICES = st.sampled_from([Device(None), Device((7, 5)), Device((8, 9))])
RECIPES = st.builds(
    Recipe,
    method=st.just("lora"),
    rank=st.integers(1, 64),
    micro_batch=st.integers(1, 6),
    seq_len=st.integers(1, 400),
    gradient_checkpointing=st.booleans(),
    autocast=st.booleans(),
    loss=st.sampled_from(["logits", "fused", "selected"]),
    optimizer=st.sampled_from(["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"]),
)
# Each example is seconds of work, too much for shrinking
few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def rehearsed(recipe: Recipe, device: Device, kept: Kept | None = None) -> Rehearsal:
    return rehearse(recipe, CONFIG, device, depth=find_depth(recipe, CONFIG), kept=kept)


def memory(recipe: Recipe, device: Device, **settings: bool) -> Memory:
    return replay(rehearsed(recipe, device), Allocator(**settings) if device.cuda else ByteCounter())


def quantized(recipe: Recipe) -> Recipe:
    return replace(recipe, method="qlora", quant_type="nf4")


@few
@given(RECIPES, DEVICES, st.sampled_from(["rank", "micro_batch", "seq_len"]))
def test_more_never_needs_less(recipe: Recipe, device: Device, field: str) -> None:
    more = replace(recipe, **{field: 2 * getattr(recipe, field)})
    assert least_bytes(rehearsed(more, device)) >= least_bytes(rehearsed(recipe, device))


@few
@given(RECIPES, DEVICES, st.booleans())
def test_components_add_up_and_what_lives_is_allocated_and_that_reserved(
    recipe: Recipe, device: Device, expandable: bool
) -> None:
    found = memory(recipe, device, **({"expandable_segments": expandable} if device.cuda else {}))
    assert sum(found.components.values()) == found.allocated == max(
        peak for phase, peak in found.phases.items() if phase in ("forward", "backward", "optimizer")
    )  # fmt: skip
    assert min(found.components.values()) >= 0
    assert found.allocated <= found.reserved <= found.highest_reserved


@few
@given(RECIPES, DEVICES)
def test_four_bits_never_hold_more_weights_than_sixteen(recipe: Recipe, device: Device) -> None:
    four, sixteen = (memory(r, device).components for r in (quantized(recipe), recipe))
    assert four["weights"] + four["quantization_state"] <= sixteen["weights"]
    assert four["adapter"] == sixteen["adapter"]


@few
@given(RECIPES, st.integers(2, 3))
def test_every_storage_is_linear_in_the_batch(recipe: Recipe, batch: int) -> None:
    """From two rows and two tokens on: PyTorch copies less where a dimension is one. TRL's head goes by the tile."""
    recipe = replace(recipe, loss="logits", seq_len=recipe.seq_len + 1)
    kept, device = Kept(), Device((8, 9))
    one, two, three = (
        [phase.events[:, 1] for phase in rehearsed(replace(recipe, micro_batch=n * batch), device, kept).phases]
        for n in (1, 2, 3)
    )
    for first, second, third in zip(one, two, three, strict=True):
        assert np.array_equal(np.sort(second - first), np.sort(third - second))


@few
@given(RECIPES, RECIPES, DEVICES)
def test_what_rehearsals_share_changes_neither(one: Recipe, other: Recipe, device: Device) -> None:
    other = replace(other, rank=one.rank, autocast=one.autocast, gradient_checkpointing=one.gradient_checkpointing)
    kept = Kept()
    for recipe in (one, other, one):
        alone, shared = rehearsed(recipe, device), rehearsed(recipe, device, kept)
        for mine, its in zip(alone.phases, shared.phases, strict=True):
            assert np.array_equal(mine.events, its.events)
        assert (alone.work, alone.managed_bytes) == (shared.work, shared.managed_bytes)
        assert alone.evaluation.keys() == shared.evaluation.keys()
        for name, extension in alone.evaluation.items():
            assert np.array_equal(extension.events, shared.evaluation[name].events)
