"""Every model family rehearses, and the few layers that are rehearsed stand for all of them byte for byte."""

from __future__ import annotations

import itertools
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM

from autoft.errors import ModelError
from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import Allocator, ByteCounter
from autoft.planner.memory.replay import Memory, replay
from autoft.planner.rehearsal.layers import Depth
from autoft.planner.rehearsal.loop import OURS, PLAIN
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.trainer.model.build import base_of, build_base, build_model
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.recipe import Recipe
from tests.planner.families import FAMILIES, LAYERS, family_config

CPU, ADA, TURING = Device(None), Device((8, 9)), Device((7, 5))
# Method, checkpointing, loss, device: every two settings meet in these six cases
PAIRS = (
    ("lora", False, "fused", ADA),
    ("qlora", True, "logits", ADA),
    ("lora", True, "fused", TURING),
    ("qlora", False, "logits", TURING),
    ("lora", False, "logits", CPU),
    ("qlora", True, "fused", CPU),
)
# Layers of several kinds, in the order that the family gives them
MIXED = (
    "qwen2_window", "qwen3_moe", "qwen3_next", "smollm3", "ministral", "gemma2", "gemma3", "olmo3", "cohere2",
    "exaone4", "deepseek_v3", "gpt_oss", "llama4",
)  # fmt: skip
NOT_LINEAR = {"falcon7b", "falcon40b", "falcon_rw"}  # of their own kind of Linear, which transformers leaves in 16 bits


def recipe_of(config: Any, method: str, checkpointing: bool, loss: str, device: Device, **others: Any) -> Recipe:
    settings = {
        "method": method,
        "quant_type": "nf4" if method == "qlora" else None,
        "base_dtype": "float16" if device == TURING else "bfloat16",
        "autocast": True,
        "gradient_checkpointing": checkpointing,
        "loss": loss,
        "micro_batch": 2,
        "seq_len": 96,
        "rank": 4,
        "attention": base_of(config)[0],
    }
    return Recipe(**(settings | others))


def memory_of(rehearsal: Rehearsal, device: Device) -> Memory:
    return replay(rehearsal, Allocator() if device.cuda else ByteCounter())


def run(recipe: Recipe, config: Any, device: Device, depth: Depth | None) -> Rehearsal:
    return rehearse(recipe, config, device, depth=depth, loop=PLAIN if recipe.loss == "logits" else OURS)


def sizes(rehearsal: Rehearsal) -> list[list[int]]:
    """Bytes made and dropped, by phase; in order, but for drops between two that are made."""
    phases = []
    for phase in rehearsal.phases:
        runs = itertools.groupby((size for _, size in phase.events), key=lambda size: size > 0)
        phases.append([size for made, run in runs for size in (run if made else sorted(run))])
    return phases


def check_rehearses(family: str, case: tuple[Any, ...]) -> None:
    method, checkpointing, loss, device = case
    config = family_config(family)
    recipe = recipe_of(config, method, checkpointing, loss, device)
    depth = find_depth(recipe, config)
    assert depth is not None
    assert depth.rehearsed <= 8
    if method == "qlora" and family in NOT_LINEAR:
        with pytest.raises(ModelError, match="can be quantized to 4 bits"):
            run(recipe, config, device, depth)
        return
    rehearsal = run(recipe, config, device, depth)
    memory = memory_of(rehearsal, device)
    evaluates = {"evaluation"} if recipe.loss != "logits" else set()
    assert memory.phases.keys() == {"load", "first_step", "forward", "backward", "optimizer", "save"} | evaluates
    assert sum(memory.components.values()) == memory.allocated
    assert sum(kernel.flops for kernel in rehearsal.work.elements()) > 0


def cases_of(family: str) -> list[tuple[Any, ...]]:
    """PAIRS; every second family swaps the methods, every third and fourth the losses: all 24 combinations are met."""
    swaps = list(FAMILIES).index(family) % 4
    methods = {"lora": "qlora", "qlora": "lora"} if swaps % 2 else {}
    losses = {"fused": "logits", "logits": "fused"} if swaps >= 2 else {}
    return [(methods.get(method, method), c, losses.get(loss, loss), device) for method, c, loss, device in PAIRS]


# Two cases a family, one of them for `make test-fast`; the next family has others
QUICK = {family: cases_of(family)[n % len(PAIRS)] for n, family in enumerate(FAMILIES)}
OTHER = {family: cases_of(family)[(n + 3) % len(PAIRS)] for n, family in enumerate(FAMILIES)}


def test_four_families_meet_every_combination() -> None:
    met = {case for family in list(FAMILIES)[:4] for case in cases_of(family)}
    assert met == set(itertools.product(("lora", "qlora"), (False, True), ("fused", "logits"), (ADA, TURING, CPU)))


@pytest.mark.parametrize(("family", "case"), QUICK.items(), ids=list(FAMILIES))
def test_every_family_rehearses(family: str, case: tuple[Any, ...]) -> None:
    check_rehearses(family, case)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_rehearses_in_another_way(family: str) -> None:
    check_rehearses(family, OTHER[family])


def check_depth(family: str, case: tuple[Any, ...], *, unmarked: bool) -> None:
    """unmarked: compare with a rehearsal, too, that is not told where layers begin and end, and labels less."""
    method, checkpointing, loss, device = case
    config = family_config(family)
    recipe = recipe_of(config, method, checkpointing, loss, device)
    depth = find_depth(recipe, config)
    assert depth is not None
    assert depth.rehearsed < depth.layers == config.num_hidden_layers
    short, full = (run(recipe, config, device, d) for d in (depth, depth.full))
    assert sizes(short) == sizes(full)
    assert (short.work, short.trainable_params) == (full.work, full.trainable_params)
    assert memory_of(short, device) == memory_of(full, device)
    if unmarked:
        assert sizes(short) == sizes(run(recipe, config, device, None))


@pytest.mark.parametrize(("family", "checkpointing"), [(family, n % 2 == 0) for n, family in enumerate(MIXED)])
def test_a_few_layers_stand_for_all(family: str, checkpointing: bool) -> None:
    check_depth(family, ("lora", checkpointing, "logits" if checkpointing else "fused", ADA), unmarked=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_layers_stand_for_all_in_every_family(family: str) -> None:
    cases = (
        ("lora", True, "fused", ADA),
        ("qlora", False, "fused", TURING),
        ("lora", False, "fused", CPU),
        ("qlora", True, "fused", ADA),
    )
    number = list(FAMILIES).index(family)  # one case a family, the next one has another
    method, *rest = cases[number % len(cases)]
    check_depth(family, ("lora" if family in NOT_LINEAR else method, *rest), unmarked=True)


def test_layers_that_cannot_stand_for_others_are_noticed() -> None:
    config = family_config("llama3", num_hidden_layers=6)
    recipe = recipe_of(config, "lora", False, "fused", ADA)
    wrong = Depth("model.layers", 6, 4, (0, 0, 0, 0, 0, 3), (0,) * 6)
    assert sizes(run(recipe, config, ADA, wrong)) == sizes(run(recipe, config, ADA, None))


# Experts and routers


@pytest.mark.parametrize(
    ("family", "adapted"),
    [
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("phimoe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gpt_oss", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("granitemoe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("llama4", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("llama3", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("falcon7b", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
    ],
)
def test_all_linear_leaves_experts_routers_and_head_alone(family: str, adapted: set[str]) -> None:
    config = family_config(family)
    model = build_model(recipe_of(config, "lora", False, "logits", ADA), config=config, weights=None, device="meta")
    trained = [name.split(".") for name, p in model.named_parameters() if p.requires_grad]
    assert {parts[-4] for parts in trained} == adapted
    assert not any("experts" in parts or "router" in parts or "lm_head" in parts for parts in trained)


def test_experts_get_an_adapter_where_they_are_named() -> None:
    config = family_config("qwen3_moe")
    names = ("q_proj", "gate_proj", "up_proj", "down_proj")
    recipe = recipe_of(config, "lora", False, "fused", ADA, target_modules=names)
    alone = recipe_of(config, "lora", False, "fused", ADA, target_modules=("q_proj",))
    found, without = (run(r, config, ADA, None) for r in (recipe, alone))
    # rank on either side of E experts; of rank 2r where two projections are one tensor
    hidden, inner, count = config.hidden_size, config.moe_intermediate_size, config.num_experts
    per_layer = 8 * count * (hidden + 2 * inner) + 4 * count * (hidden + inner)
    extra = found.trainable_params - without.trainable_params
    assert extra >= (LAYERS - 1) * per_layer  # the first layer is dense
    copy = 2 * count * 2 * inner * hidden  # gate_up_proj with its adapter added, in every layer
    counts = [sum(size == copy for phase in r.phases[r.steady :] for _, size in phase.events) for r in (found, without)]
    assert counts[0] >= counts[1] + LAYERS - 1


@pytest.mark.parametrize("family", ["phimoe", "llama4", "granitemoe", "deepseek_v2"])
def test_the_trainer_trains_what_rehearses(family: str, tmp_path) -> None:
    config = family_config(family, **({} if family == "llama4" else {"num_hidden_layers": 2}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    recipe = recipe_of(
        config, "lora", False, "fused", CPU, base_dtype="float32", autocast=False, micro_batch=1, seq_len=16
    )
    model = build_model(recipe, config=config, weights=tmp_path, device="cpu")
    ids = torch.arange(16)[None]
    loss = compute_loss(model, {"input_ids": ids, "labels": ids}, recipe)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# Experts in 4 bits


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_in_4_bits_take_what_they_take_for_real(family: str, double_quant: bool, tmp_path) -> None:
    config = family_config(family, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    recipe = recipe_of(config, "qlora", False, "fused", ADA, double_quant=double_quant, experts_4bit=True)
    base = build_base(recipe, config, tmp_path, "cpu")
    tensors = [*base.parameters(), *base.buffers()]
    for parameter in base.parameters():
        state = getattr(parameter, "quant_state", None)
        for part in filter(None, (state, getattr(state, "state2", None))):
            tensors += [t for t in (part.absmax, part.code, part.offset) if t is not None]
    if double_quant:
        tensors.append(bnb.functional.name2qmap["dynamic"])  # which bitsandbytes keeps for all scales
    found = memory_of(run(recipe, config, ADA, None), ADA).components
    assert found["weights"] + found["quantization_state"] == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_experts_in_4_bits_are_unpacked_in_forward_and_backward(checkpointing: bool) -> None:
    config = family_config("mixtral", num_hidden_layers=4)
    packed, plain = (
        run(recipe_of(config, "qlora", checkpointing, "fused", ADA, experts_4bit=e), config, ADA, None)
        for e in (True, False)
    )
    weights = [memory_of(r, ADA).components["weights"] for r in (packed, plain)]
    experts = 4 * config.num_local_experts * 3 * config.intermediate_size * config.hidden_size
    assert weights[1] - weights[0] == 2 * experts - experts // 2
    gate_up = 2 * config.num_local_experts * 2 * config.intermediate_size * config.hidden_size
    for name, times in (("forward", 4), ("backward", 4)):
        phase = next(phase for phase in packed.phases[packed.steady :] if phase.name == name)
        assert sum(size == gate_up for _, size in phase.events) == times
