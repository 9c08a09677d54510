"""Layers that wait on the host: the same losses, gradients and weights bit for bit, from two places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from autoft.errors import ModelError
from autoft.trainer.model import build, stream
from autoft.trainer.model.build import build_model
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.optimizers.optim import build_optimizer
from autoft.trainer.recipe import Recipe
from tests.trainer.test_step import FP32, QLORA, make_batch

LAYERS = 5


@pytest.fixture(scope="module")
def deep_model(tiny_model, tmp_path_factory):
    """The tiny model with more layers than there are places, each with weights of its own."""
    folder = tmp_path_factory.mktemp("deep")
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = LAYERS
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def built(folder, settings, streamed: int, monkeypatch):
    """On the CPU, where a copy from the host is a copy all the same."""
    recipe = Recipe(**settings, gradient_checkpointing=True)
    made = []
    if streamed:
        whole = build.build_base

        def streamed_base(*args, **kwargs):
            base = whole(*args, **kwargs)
            made.append(stream.stream(base, replace(recipe, streamed_layers=streamed), "cpu"))
            return base

        monkeypatch.setattr(build, "build_base", streamed_base)
    model = build_model(recipe, config=AutoConfig.from_pretrained(folder), weights=folder, device="cpu")
    monkeypatch.undo()
    return recipe, model, made


def trained(recipe, model, steps: int = 3):
    """Losses and gradients of a few steps, with an evaluation between them, and the weights that come of it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(parameters, recipe, learning_rate=1e-2)
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = compute_loss(model, make_batch(), recipe)
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in parameters)]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            found.append(model.eval()(input_ids=make_batch()["input_ids"]).logits)
        model.train()
    return found + [p.detach() for p in parameters]


@pytest.mark.parametrize(
    ("settings", "streamed"),
    [
        (FP32, 1), (FP32, 2), (FP32, 3), (FP32, LAYERS + 4), (FP32 | {"dropout": 0.1}, LAYERS),
        (QLORA, 3), (QLORA | {"double_quant": True}, LAYERS),
    ],
)  # fmt: skip
def test_training_is_the_same_bit_for_bit(deep_model, settings, streamed, monkeypatch) -> None:
    recipe, model, _ = built(deep_model, settings, 0, monkeypatch)
    expected = trained(recipe, model)
    recipe, model, [made] = built(deep_model, settings, streamed, monkeypatch)
    torch.testing.assert_close(trained(recipe, model), expected, rtol=0, atol=0)
    assert len(made._host) == min(streamed, LAYERS)


def test_layers_share_two_places(deep_model, monkeypatch) -> None:
    _, model, [made] = built(deep_model, QLORA, LAYERS, monkeypatch)
    layers = model.get_base_model().model.layers
    storages = [{p.untyped_storage().data_ptr() for p in layer.parameters() if not p.requires_grad} for layer in layers]
    assert all(len(own) == 1 for own in storages)
    assert storages[0] == storages[2] == storages[4] != storages[1] == storages[3]
    assert len(made._places) == 2


def test_each_pass_copies_all_but_the_two_that_are_there(deep_model, monkeypatch) -> None:
    recipe, model, [made] = built(deep_model, FP32, LAYERS, monkeypatch)
    compute_loss(model, make_batch(), recipe).backward()  # what is in its place now is what a pass ends with
    copied, copy = [], stream.Streamed._copy

    def counted(self, number: int) -> None:
        if self._holds[number % 2] != number:
            copied.append(number)
        copy(self, number)

    monkeypatch.setattr(stream.Streamed, "_copy", counted)
    loss = compute_loss(model, make_batch(), recipe)
    assert copied == [2, 3, 4]
    loss.backward()
    assert copied == [2, 3, 4, 2, 1, 0]
    sizes = [len(host) for host in made._host]
    assert stream.copied_bytes(sizes) == (sum(sizes[n] for n in copied[:3]), sum(sizes[n] for n in copied[3:]))


def test_a_step_that_broke_off_can_be_repeated(deep_model, monkeypatch) -> None:
    """As after memory ran out in the midst of a backward: whatever is in the places, the next pass is right."""
    recipe, model, _ = built(deep_model, FP32, LAYERS, monkeypatch)
    expected = trained(*built(deep_model, FP32, 0, monkeypatch)[:2])
    layer = model.get_base_model().model.layers[1]
    broken = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broke off")))
    with pytest.raises(RuntimeError, match="broke off"):
        compute_loss(model, make_batch(), recipe)
    broken.remove()
    torch.testing.assert_close(trained(recipe, model), expected, rtol=0, atol=0)


def test_streamed_layers_are_spread_evenly() -> None:
    assert stream.streamed_numbers(2, 8) == [3, 7]
    assert stream.streamed_numbers(8, 8) == stream.streamed_numbers(99, 8) == list(range(8))
    assert stream.streamed_numbers(0, 8) == []
    assert [len(stream.streamed_numbers(count, 28)) for count in range(29)] == list(range(29))


def test_layers_that_share_weights_are_refused(tiny_model) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.model.layers[1].mlp.up_proj.weight = base.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ModelError, match=r"layers of .* share weights"):
        stream.stream(base, Recipe(gradient_checkpointing=True, streamed_layers=2), "cpu")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "needs gradient_checkpointing"),
        ({"gradient_checkpointing": True, "checkpoint_every": 2}, "needs gradient_checkpointing"),
        ({"method": "full", "gradient_checkpointing": True}, "method full trains every layer"),
        ({"method": "qlora", "quant_type": "int8", "gradient_checkpointing": True}, "needs a base in 16 or 4 bits"),
        ({"use_dora": True, "gradient_checkpointing": True}, "use_dora measures weights"),
        ({"init": "pissa", "gradient_checkpointing": True}, "init pissa reads weights"),
    ],
)
def test_what_cannot_be_streamed_is_refused(settings, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        Recipe(streamed_layers=2, **settings)


def test_on_the_cpu_there_is_nothing_to_stream(tiny_model) -> None:
    recipe = Recipe(**FP32, gradient_checkpointing=True, streamed_layers=2)
    with pytest.raises(ModelError, match="streamed_layers keeps layers in the host's memory until a GPU runs them"):
        build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")


def test_an_embedding_of_its_own_stays_on_the_host_out_of_sight(tiny_model) -> None:
    recipe = Recipe(gradient_checkpointing=True, streamed_layers=2)
    config = AutoConfig.from_pretrained(tiny_model)
    bases = {}
    for tied in (False, True):
        config.tie_word_embeddings = tied
        torch.manual_seed(0)
        bases[tied] = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    expected = bases[False](input_ids=ids).logits
    stream.stream(bases[False], recipe, "cpu")
    torch.testing.assert_close(bases[False](input_ids=ids).logits, expected, rtol=0, atol=0)
    names = dict(bases[False].named_parameters())
    assert "model.embed_tokens.weight" not in names
    assert "lm_head.weight" in names
    assert len(bases[False].get_input_embeddings().weight) == config.vocab_size
    stream.stream(bases[True], recipe, "cpu")
    assert "model.embed_tokens.weight" in dict(bases[True].named_parameters())
    named = replace(recipe, target_modules=("embed_tokens",))
    assert stream.host_embedding(AutoModelForCausalLM.from_config(config), named) is None


def test_memory_that_cannot_be_pinned_is_told(tiny_model, monkeypatch) -> None:
    """The system's refusal is the only part that is played: no CUDA is here to refuse."""

    class Cudart:
        class cudaError:  # noqa: N801
            success = 0

        def __init__(self, allowed: int) -> None:
            self.allowed, self.pinned = allowed, []

        def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802
            if len(self.pinned) == self.allowed:
                return 2
            self.pinned.append(pointer)
            return 0

        def cudaHostUnregister(self, pointer: int) -> None:  # noqa: N802
            self.pinned.remove(pointer)

    buffers = [torch.empty(8, dtype=torch.uint8) for _ in range(3)]
    for allowed, expected in ((3, True), (1, False)):
        cudart = Cudart(allowed)
        monkeypatch.setattr(stream, "_cudart", lambda cudart=cudart: cudart)
        owner = torch.nn.Linear(1, 1)
        assert stream._pin(buffers, owner) is expected
        assert len(cudart.pinned) == min(allowed, 3)
        del owner
        assert cudart.pinned == []  # the memory may go to others now
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert stream.slow_copies(base) is None
    streamed = stream.stream(base, Recipe(gradient_checkpointing=True, streamed_layers=2), "cpu")
    assert "could not be pinned" in (stream.slow_copies(base) or "")
    streamed.pinned = True
    assert stream.slow_copies(base) is None
