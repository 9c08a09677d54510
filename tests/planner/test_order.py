"""The order of events that decides where blocks lie, as PyTorch's own recorded history of such runs has it."""

from __future__ import annotations

from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.layers import pairs
from autoft.planner.rehearsal.loop import PLAIN
from autoft.planner.rehearsal.rehearse import rehearse
from autoft.planner.tracing.trace import KIND
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config

T4 = Device((7, 5), 40)
HIDDEN, RANK = 64, 8
QLORA = {
    "method": "qlora",
    "quant_type": "nf4",
    "base_dtype": "float16",
    "rank": RANK,
    "target_modules": ("q_proj",),
    "loss": "logits",
    "optimizer": "adamw_torch",
    "double_quant": False,
}


def rehearsed(**changes):
    config = family_config("llama3", num_hidden_layers=1, hidden_size=HIDDEN)
    return rehearse(Recipe(**{**QLORA, **changes}), config, T4, depth=None, loop=PLAIN)


def test_adapters_of_4_bit_layers_go_from_float32_to_16_bits_and_back_when_all_are_there():
    """q_proj's A (8, 64) and B (64, 8): 2,048 bytes each, moved one by one to 1,024, then 2,048 again."""
    rehearsal = rehearsed()
    keys = [key for key, kind in enumerate(rehearsal.kinds) if kind == KIND["adapter"]]
    events = [event for phase in rehearsal.phases if phase.name == "load" for event in pairs(phase.events)][-10:]
    half = 2 * RANK * HIDDEN
    made, moved = [key for key, _ in events[:2]], [events[2][0], events[4][0]]
    assert [size for _, size in events[:6]] == [2 * half, 2 * half, half, -2 * half, half, -2 * half]
    assert [key for key, _ in events[:6]] == [*made, moved[0], made[0], moved[1], made[1]]
    assert [size for _, size in events[6:]] == [2 * half, -half, 2 * half, -half]
    assert [key for key, _ in events[6:]] == [keys[0], moved[0], keys[1], moved[1]]


def test_adapters_of_8_bit_layers_are_made_in_float32():
    events = [event for phase in rehearsed(quant_type="int8").phases[:1] for event in pairs(phase.events)]
    assert [size for _, size in events[-2:]] == [4 * RANK * HIDDEN] * 2


def test_a_workspace_comes_with_the_first_product_in_4_bits_while_its_dequantized_weight_lives():
    """2,048 rows are more than the fused product takes: q_proj's weight (64, 64) is dequantized to 8,192 bytes."""
    rehearsal = rehearsed(micro_batch=1, seq_len=2048, target_modules=("o_proj",))
    events = list(pairs(next(p.events for p in rehearsal.phases if p.name == "forward")))
    at = next(place for place, (key, _) in enumerate(events) if rehearsal.kinds[key] == KIND["workspaces"])
    (weight, copied), (_, result) = events[at - 2 : at]
    assert (copied, result) == (2 * HIDDEN * HIDDEN, 2 * 2048 * HIDDEN)
    assert events[at + 1] == (weight, -copied)
