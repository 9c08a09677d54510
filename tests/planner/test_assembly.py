"""What loading takes where a checkpoint holds a weight in pieces, and the order in which it comes."""

from __future__ import annotations

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, core_model_loading

from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.assembly import assemblies
from autoft.planner.rehearsal.layers import shortened
from autoft.planner.rehearsal.loop import OURS
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config

AMPERE = Device((8, 6))
MIXTURES = ("mixtral", "qwen3_moe", "granitemoe", "deepseek_v3", "gpt_oss", "phimoe")


@pytest.mark.parametrize("family", [*MIXTURES, "llama3", "pythia", "gpt2", "gemma2"])
def test_weights_are_rehearsed_in_the_order_in_which_transformers_sets_them(family, tmp_path) -> None:
    config = family_config(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 11})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    sets, loaded = core_model_loading.set_param_for_module, []

    def noted(model, name, *rest):
        loaded.append(name)
        return sets(model, name, *rest)

    with mock.patch.object(core_model_loading, "set_param_for_module", noted):
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    recipe = Recipe(attention="eager")
    found = rehearse(recipe, config, AMPERE, depth=find_depth(recipe, config))
    first_of_each = {w.first: w for w in found.weights if w.stored and not w.adapter}
    ordered = sorted(first_of_each.values(), key=lambda w: core_model_loading.dot_natural_key(w.first))
    pieces = {name: assembly.first for name, assembly in assemblies(config, recipe).items()}
    expected = list(dict.fromkeys(pieces.get(name, name) for name in loaded))
    assert [w.first for w in ordered] == expected


def test_experts_lie_beside_their_stack_and_stacks_beside_what_joins_them() -> None:
    config = family_config("mixtral", num_hidden_layers=1)
    experts, width, hidden = 4, config.intermediate_size, config.hidden_size
    one = 2 * width * hidden
    made = assemblies(config, Recipe())["model.layers.0.mlp.experts.gate_up_proj"]
    assert made.first == "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert [size for _, size in made.events if size > 0] == [
        *[one] * 2 * experts,
        *[one * experts] * 2,
        2 * one * experts,
    ]
    live = [sum(size for _, size in made.events[: number + 1]) for number in range(len(made.events))]
    assert max(live) == 4 * experts * one  # both stacks, and both of them joined
    assert live[-1] == 2 * experts * one


@pytest.mark.parametrize("settings", [{}, {"method": "qlora", "quant_type": "nf4", "experts_4bit": True}])
def test_each_layer_s_experts_are_put_together_while_a_model_loads(settings) -> None:
    config = family_config("mixtral")
    recipe = Recipe(**settings, attention="eager")
    found = rehearse(recipe, config, AMPERE, depth=find_depth(recipe, config))
    joined = 2 * 2 * 4 * config.intermediate_size * config.hidden_size
    load = [size for phase in found.phases if phase.name == "load" for _, size in phase.events]
    assert load.count(joined) == config.num_hidden_layers
    assert load.count(-joined) == (config.num_hidden_layers if settings else 0)  # packed, and dropped
    named = [w.first for w in found.weights if re.search(r"experts.*gate_up_proj", w.name)]
    assert named == [f"model.layers.{n}.block_sparse_moe.experts.0.w1.weight" for n in range(config.num_hidden_layers)]


def test_weights_that_are_cut_from_one_tensor_end_it_together() -> None:
    """HRM's checkpoints hold queries, keys and values in one tensor, of which transformers takes views."""
    config = shortened(AutoConfig.for_model("hrm_text"), 1)
    several = [made for made in assemblies(config, Recipe(attention="eager")).values() if len(made.results) > 1]
    assert several
    assert {len(set(made.results.values())) for made in several} == {1}
    recipe = Recipe(method="qlora", quant_type="nf4", attention="eager")
    found = rehearse(recipe, config, AMPERE, depth=None, loop=replace(OURS, evaluates=False))
    living: set[int] = set()
    for phase in found.phases:
        for key, size in phase.events.tolist() if phase.name == "load" else ():
            assert (key in living) == (size < 0)
            living ^= {key}
