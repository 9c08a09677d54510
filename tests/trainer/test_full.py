"""Full fine-tuning: every weight is trained, and the run's folder is a model of its own."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from autoft.errors import ModelError
from autoft.trainer.data.shape import Message
from autoft.trainer.evaluation.chat import open_run
from autoft.trainer.job import Job
from autoft.trainer.model.build import build_model, without_adapter
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.optimizers.optim import build_optimizer
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.session import run
from autoft.trainer.storage.run_folder import SMALL_FILES_BYTES, output_bytes
from tests.trainer.test_step import make_batch

FULL = {"method": "full", "base_dtype": "float32", "loss": "selected", "micro_batch": 4, "seq_len": 64}
# of the tiny model, whose head is its embedding: 2 layers of q, k, v, o, gate, up, down and two norms, and a norm
PARAMS = 259 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64) + 64


def build(tiny_model, device="cpu", **settings):
    recipe = Recipe(**FULL | settings)
    weights = None if device == "meta" else tiny_model
    config = AutoConfig.from_pretrained(tiny_model)
    return recipe, build_model(recipe, config=config, weights=weights, device=device)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"base_dtype": "bfloat16"}, torch.bfloat16),
        ({"base_dtype": "bfloat16", "autocast": True}, torch.float32),
        ({"base_dtype": "float16", "autocast": True}, torch.float32),
    ],
    ids=str,
)
def test_every_weight_is_trained_in_the_recipe_s_dtype(tiny_model, settings, dtype) -> None:
    _, model = build(tiny_model, **settings)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PARAMS
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert without_adapter(model) is model
    _, ghost = build(tiny_model, device="meta", **settings)
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in ghost.named_parameters()} == {
        n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"base_dtype": "bfloat16", "autocast": True, "loss": "fused", "optimizer": "adamw_torch_fused"},
        {"base_dtype": "bfloat16", "gradient_checkpointing": True, "optimizer": "adamw_8bit"},
    ],
    ids=str,
)
def test_training_moves_every_weight_and_the_loss_falls(tiny_model, settings) -> None:
    recipe, model = build(tiny_model, **settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepper = build_optimizer(list(model.parameters()), recipe, learning_rate=3e-3)
    losses = []
    for _ in range(20):
        loss = compute_loss(model, make_batch(), recipe)
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # bfloat16 has no number between 1 and 1.0078 that a norm could move to by a small step
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert all("norm" in name for name in still)
    assert not still or recipe.weights_dtype == "bfloat16"


@pytest.mark.parametrize(
    "name", ["rank", "alpha", "dropout", "use_rslora", "use_dora", "target_modules", "adapter_dtype"]
)
def test_what_is_of_an_adapter_is_refused(name) -> None:
    other = {"rank": 8, "alpha": 8.0, "dropout": 0.1, "target_modules": ("q_proj",), "adapter_dtype": "bfloat16"}
    with pytest.raises(
        ValueError, match=f"method full trains the weights themselves and has no adapter: leave {name} out"
    ):
        Recipe(method="full", **{name: other.get(name, True)})


def test_float16_weights_and_packed_ones_are_not_trained() -> None:
    with pytest.raises(ValueError, match="method full cannot train float16 weights: set autocast"):
        Recipe(method="full", base_dtype="float16")
    with pytest.raises(ValueError, match="method qlora and a quant_type go together"):
        Recipe(method="full", quant_type="nf4")


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """(folder, result) of a run of one epoch."""
    folder = tmp_path_factory.mktemp("full")
    data = folder / "data.jsonl"
    rows = [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = Job(
        model=str(tiny_model), recipe=Recipe(**FULL), data=str(data), eval_rows=4, max_new_tokens=4, learning_rate=1e-2
    )
    return folder / "out", run(job, folder / "out", plan_toml="")


def test_a_run_writes_a_model_that_transformers_loads(finished, tiny_model) -> None:
    folder, result = finished
    assert (result.trainable_params, result.total_params) == (PARAMS, PARAMS)
    assert result.losses[-1][1] < result.losses[0][1]
    names = set(result.artifacts)
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert not any("adapter" in name for name in names)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)
    written = (folder / "model.safetensors").stat().st_size
    assert written < output_bytes(PARAMS) == 4 * PARAMS + SMALL_FILES_BYTES
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "The weights of `" in card
    assert "All weights in float32, computed in float32" in card
    assert "from transformers import AutoModelForCausalLM" in card
    assert 'library_name: "transformers"' in card


def test_a_run_of_all_weights_can_be_talked_to(finished) -> None:
    folder, result = finished
    talker = open_run(folder)
    same = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(p, q) for p, q in zip(talker.model.parameters(), same.parameters(), strict=True))
    said: list[str] = []
    answer = talker.answer([Message(role="user", content="number 3")], max_new_tokens=4, on_text=said.append)
    assert answer == "".join(said).strip()
    assert result.sample is not None


def test_a_run_whose_model_is_gone_is_refused(finished) -> None:
    folder, _ = finished
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8")
    config.unlink()
    try:
        with pytest.raises(ModelError, match=r"its config\.json is gone"):
            open_run(folder)
    finally:
        config.write_text(text, encoding="utf-8")
