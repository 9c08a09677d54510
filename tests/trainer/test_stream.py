"""Layers that wait on the host: the same losses, gradients and weights bit for bit, from two places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from autoft.errors import ModelError
from autoft.trainer.model import build, stream
from autoft.trainer.model.build import build_model
from autoft.trainer.model.shared_host import SharedHost
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


def bases(folder, settings, tmp_path, streamed: int):
    """(recipe, the base that reads its weights and lends them, the one that borrows them)."""
    recipe = Recipe(**settings, gradient_checkpointing=True)
    config = AutoConfig.from_pretrained(folder)
    lent, borrowed = (SharedHost(tmp_path, first=first) for first in (True, False))
    made = []
    for shared, weights, device in ((lent, folder, "cpu"), (borrowed, None, "meta")):
        base = build.build_base(recipe, config, weights, device)
        if recipe.kbit_upcast:
            build._upcast(base)
        stream.stream(base, replace(recipe, streamed_layers=streamed), "cpu", shared)
        made.append(base)
    lent.close()
    return recipe, *made


@pytest.mark.parametrize(
    "settings",
    [
        FP32, {"base_dtype": "bfloat16", "loss": "logits"}, QLORA, QLORA | {"double_quant": True},
        QLORA | {"kbit_upcast": True},
    ],
)  # fmt: skip
def test_who_borrows_a_base_learns_what_its_lender_does(deep_model, settings, tmp_path) -> None:
    """It reads no weights: its model is made without storage, and every tensor of it comes from the first process."""
    recipe, *both = bases(deep_model, settings, tmp_path, 3)
    learnt = []
    for base in both:
        assert not any(tensor.is_meta for _, _, tensor in stream._tensors(base))
        torch.manual_seed(0)
        model = build.add_adapter(base, recipe, "cpu")
        build.checkpoint_layers(model)
        learnt.append(trained(recipe, model.train()))
    torch.testing.assert_close(learnt[1], learnt[0], rtol=0, atol=0)


SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gpt_neox": {},
    "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_build_can_be_borrowed(family, tmp_path) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SHAPE | FAMILIES[family])
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    experts = {"experts_4bit": True} if "moe" in family else {}
    _, lender, borrower = bases(folder, QLORA | experts | {"attention": "eager"}, tmp_path, 2)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = lender.eval()(input_ids=ids).logits
        assert expected.isfinite().all()
        torch.testing.assert_close(borrower.eval()(input_ids=ids).logits, expected, rtol=0, atol=0)
