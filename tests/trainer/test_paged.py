"""Paged AdamW: its state stays paged, and its memory is used again."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from bitsandbytes.optim import PagedAdamW8bit

from autoft.trainer.optimizers.optim import build_optimizer, forget_steps
from autoft.trainer.recipe import Recipe

SHAPES = ((8, 4), (80, 64))  # the first has state of 32 bits: bitsandbytes rounds none that is so small


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paged memory is a GPU's alone. Here it is the CPU's, with the mark that bitsandbytes gives it."""
    plain = PagedAdamW8bit.get_state_buffer

    def buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        found = plain(self, p, dtype=dtype)
        found.is_paged = True
        return found

    monkeypatch.setattr(PagedAdamW8bit, "get_state_buffer", buffer)
    monkeypatch.setattr(PagedAdamW8bit, "prefetch_state", lambda *_: None)


def trained(steps: int, parameters: list[torch.nn.Parameter], optimizer: Any) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def made() -> tuple[list[torch.nn.Parameter], Any]:
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    return parameters, build_optimizer(parameters, Recipe(optimizer="paged_adamw_8bit"), learning_rate=0.1)


def memory(optimizer: Any) -> list[int]:
    return sorted(values[name].data_ptr() for values in optimizer.state.values() for name in ("state1", "state2"))


pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def test_what_is_forgotten_is_as_new_and_in_the_same_memory() -> None:
    parameters, optimizer = made()
    trained(3, parameters, optimizer)
    places, size = memory(optimizer), optimizer.paged_bytes
    assert size == sum(2 * torch.Size(shape).numel() * each for shape, each in zip(SHAPES, (4, 1), strict=True))
    forget_steps(optimizer)
    assert (optimizer.paged_bytes, dict(optimizer.state)) == (size, {})
    for parameter in parameters:
        torch.nn.init.ones_(parameter)
    trained(3, parameters, optimizer)
    assert (memory(optimizer), optimizer.paged_bytes) == (places, size)
    fresh, another = made()
    trained(3, fresh, another)
    for one, other in zip(parameters, fresh, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_loaded_state_is_paged_and_goes_on_the_same(steps_before: int) -> None:
    parameters, optimizer = made()
    trained(3, parameters, optimizer)
    saved = deepcopy(optimizer.state_dict())
    resumed, another = made()
    trained(steps_before, resumed, another)
    places = memory(another)
    another.load_state_dict(saved)
    for values in another.state.values():
        assert {name for name, each in values.items() if hasattr(each, "is_paged")} == {"state1", "state2"}
    assert not places or memory(another) == places
    for one, other in zip(parameters, resumed, strict=True):
        other.data.copy_(one.data)
    trained(2, parameters, optimizer)
    trained(2, resumed, another)
    for one, other in zip(parameters, resumed, strict=True):
        assert torch.equal(one, other)
