"""Checkpoints that wait on the host: the same gradients bit for bit, by copies of the layers' inputs alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from autoft.errors import ModelError
from autoft.trainer.model import offload
from autoft.trainer.model.build import build_model
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.recipe import Recipe
from tests.trainer.test_step import FP32, INT8, QLORA, make_batch

OFFLOADED = {"gradient_checkpointing": True, "offload_checkpoints": True}


def built(tiny_model, settings):
    recipe = Recipe(**settings, gradient_checkpointing=True)
    return recipe, build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")


def loss_and_gradients(recipe, model):
    torch.manual_seed(1)
    loss = compute_loss(model, make_batch(), recipe)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "settings", [FP32, QLORA, INT8, FP32 | {"dropout": 0.1}], ids=["lora", "qlora", "int8", "dropout"]
)
def test_gradients_are_the_same_bit_for_bit(tiny_model, settings, monkeypatch) -> None:
    """On the CPU, where a copy to the host is a copy all the same."""
    expected = loss_and_gradients(*built(tiny_model, settings))
    moved, back = [], []
    to_host, to_device = offload.to_host, offload.to_device
    monkeypatch.setattr(offload, "to_host", lambda t: moved.append(tuple(t.shape)) or to_host(t))
    monkeypatch.setattr(offload, "to_device", lambda saved: back.append(saved) or to_device(saved))
    recipe, model = built(tiny_model, settings)
    offload.offload_checkpoints(model)
    found = loss_and_gradients(recipe, model)
    assert len(found) > 20
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [shape for shape in moved if 0 not in shape] == [(2, 16, 64)] * 2  # the hidden state before each layer
    assert len(back) >= 2


def test_what_comes_back_is_a_copy() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    saved = offload.to_host(tensor)
    tensor.zero_()
    assert offload.to_device(saved).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_on_the_cpu_there_is_nothing_to_move(tiny_model) -> None:
    recipe = Recipe(**FP32, **OFFLOADED)
    with pytest.raises(ModelError, match="offload_checkpoints moves checkpoints from a GPU to the host's memory"):
        build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")


def test_offloading_needs_checkpoints() -> None:
    with pytest.raises(ValueError, match="offload_checkpoints needs gradient_checkpointing"):
        Recipe(offload_checkpoints=True)
