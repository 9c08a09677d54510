"""Every optimizer that a Recipe can name is in the registry, learns, and goes on bit for bit from what it has saved."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoConfig

from autoft.trainer.model.build import build_model
from autoft.trainer.optimizers import OPTIMIZERS, spec_of
from autoft.trainer.optimizers.optim import build_optimizer, faster_weights, forget_steps
from autoft.trainer.recipe import Optimizer, Recipe

NAMES = list(OPTIMIZERS)
WARNS = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")


def problem(dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], torch.Tensor]:
    """A matrix large enough for state of 8 bits, a vector, and what the one times the other is to be."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(96, 64, generator=generator)
    vector = torch.randn(64, generator=generator)
    return [torch.nn.Parameter(part.to(dtype)) for part in (matrix, vector)], torch.zeros(96)


def steps(parameters: list[torch.nn.Parameter], wanted: torch.Tensor, optimizer: torch.optim.Optimizer, count: int):
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        matrix, vector = parameters
        loss = (matrix.float() @ vector.float() - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_registry_has_the_names_that_a_recipe_may_have() -> None:
    assert tuple(NAMES) == get_args(Optimizer)
    for name, spec in OPTIMIZERS.items():
        assert spec.name == name
        assert spec.source
        assert spec.lighter is None or spec.lighter in NAMES


@WARNS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_goes_on_from_its_state_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    recipe = Recipe(optimizer=name)
    parameters, wanted = problem(dtype)
    optimizer = build_optimizer(parameters, recipe, learning_rate=0.01)
    losses = steps(parameters, wanted, optimizer, 6)
    assert losses[-1] < 0.9 * losses[0]

    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = build_optimizer(others, recipe, learning_rate=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(others, wanted, other, 3) == steps(parameters, wanted, optimizer, 3)
    for one, two in zip(parameters, others, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@WARNS
@pytest.mark.parametrize("name", NAMES)
def test_what_has_forgotten_its_steps_begins_again(name: str) -> None:
    recipe = Recipe(optimizer=name)
    parameters, wanted = problem(torch.float32)
    optimizer = build_optimizer(parameters, recipe, learning_rate=0.01)
    first = [parameter.detach().clone() for parameter in parameters]
    losses = steps(parameters, wanted, optimizer, 3)
    forget_steps(optimizer)
    with torch.no_grad():
        for parameter, value in zip(parameters, first, strict=True):
            parameter.copy_(value)
    assert steps(parameters, wanted, optimizer, 3) == losses


@WARNS
@pytest.mark.parametrize("name", NAMES)
def test_its_state_takes_no_more_than_the_registry_says(name: str) -> None:
    """The scales and codes of 8 bits are of blocks, and a vector is kept whole: 2 % more."""
    parameters, wanted = problem(torch.float32)
    optimizer = build_optimizer(parameters, Recipe(optimizer=name), learning_rate=0.01)
    steps(parameters, wanted, optimizer, 1)
    matrix = parameters[0]
    held = [v for v in optimizer.state[matrix].values() if isinstance(v, torch.Tensor) and v.numel() > 256]
    assert sum(value.nbytes for value in held) <= 1.02 * spec_of(name).state_bytes(4) * matrix.numel()


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_plus_gives_the_rates_that_peft_gives(tiny_model, use_dora: bool) -> None:
    recipe = Recipe(base_dtype="float32", loss="logits", lora_plus_ratio=16, use_dora=use_dora)
    model = build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    ours = build_optimizer(trained, recipe, learning_rate=1e-4, faster=faster_weights(model, recipe))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
    rates = [
        {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
        for optimizer in (ours, theirs)
    ]
    assert rates[0] == rates[1]
    assert set(rates[0].values()) == {1e-4, 16e-4}


@WARNS
@pytest.mark.parametrize("name", NAMES)
def test_groups_of_lora_plus_go_on_from_a_saved_state(name: str) -> None:
    recipe = Recipe(optimizer=name, lora_plus_ratio=4)
    parameters, wanted = problem(torch.float32)
    optimizer = build_optimizer(parameters, recipe, learning_rate=0.01, faster=parameters[:1])
    steps(parameters, wanted, optimizer, 4)
    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = build_optimizer(others, recipe, learning_rate=0.5, faster=others[:1])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.04]
    assert steps(others, wanted, other, 3) == steps(parameters, wanted, optimizer, 3)
