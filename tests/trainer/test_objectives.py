"""What a step minimises: DFT beside TRL's own, one source of batches, and what stays the cross entropy for all."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from autoft.trainer.data.tokens import Example
from autoft.trainer.evaluation.evaluate import mean_loss
from autoft.trainer.model.build import build_model
from autoft.trainer.objectives import OBJECTIVES, objective_of
from autoft.trainer.objectives.dft import weighted
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.recipe import Loss, ObjectiveName, Recipe
from tests.conftest import make_tokenizer

NAMES = list(OBJECTIVES)
FULL = {"method": "full", "base_dtype": "float32", "micro_batch": 2, "seq_len": 48}
FP32 = {"base_dtype": "float32", "loss": "selected", "micro_batch": 2, "seq_len": 48}


def examples(count: int = 8) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(9, 24, (count,), generator=generator).tolist()
    rows = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]
    return [Example(ids, [IGNORED] * (len(ids) // 3) + ids[len(ids) // 3 :]) for ids in rows]


def micro_batches(recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    """Of eight examples: as many as a recipe has rows in each, two in a row where they are packed."""
    objective, pairs = objective_of(recipe), [list(pair) for pair in zip(*[iter(examples())] * 2, strict=True)]
    rows = pairs if recipe.packing else [[example] for pair in pairs for example in pair]
    made = [objective.row(row, recipe, 0) for row in rows]
    ends = range(0, len(made) + 1, recipe.micro_batch)
    return [objective.collate(made[begin:end], recipe, 0) for begin, end in pairwise(ends)]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trl_s_own(model: Any, batches: list[dict[str, Any]], trained: Any, folder: Any, loss_type: str) -> torch.Tensor:
    """Its SFTTrainer's loss of the micro-batches of one optimizer step, and their gradients in the model."""
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(folder), loss_type=loss_type, use_cpu=True, bf16=False, report_to="none", max_length=None,
        activation_checkpointing=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": list(e.input_ids), "labels": list(e.labels)} for e in examples()])
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=make_tokenizer())
    model.train()
    total = torch.zeros(())
    for batch in batches:
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=trained)
        loss.backward()
        total += loss.detach()
    return total


def test_the_registry_has_the_names_that_a_recipe_may_have() -> None:
    assert tuple(NAMES) == get_args(ObjectiveName)
    for name, objective in OBJECTIVES.items():
        assert objective.name == name
        assert objective.source
        assert objective.metrics["loss"] is OBJECTIVES["sft"].loss  # so that all runs compare
        assert objective.losses == tuple(way for way in get_args(Loss) if way in objective.losses)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("loss", ["fused", "selected"])
@pytest.mark.parametrize(("name", "loss_type"), [("sft", "nll"), ("dft", "dft")])
def test_loss_and_gradients_are_trl_s_own(tiny_model, tmp_path, name, loss_type, loss, packing) -> None:
    recipe = Recipe(**FULL, objective=name, loss=loss, packing=packing)
    batches = micro_batches(recipe)
    assert len(batches) == (2 if packing else 4)
    trained = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batches)
    # TRL hands the mask on, beside which transformers tells no packed examples apart
    theirs = [{k: v for k, v in b.items() if not (packing and k == "attention_mask")} for b in batches]
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = trl_s_own(other, theirs, trained, tmp_path, loss_type)

    model = build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")
    total = torch.zeros(())
    for batch in batches:
        part = objective_of(recipe).loss(model, batch, recipe, num_trained_tokens=trained)
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(model), gradients(other), rtol=1e-4, atol=1e-7)
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model).values())


def test_a_token_counts_as_its_probability() -> None:
    losses = torch.tensor([0.0, 0.5, 3.0, 0.0], requires_grad=True)
    values = weighted(losses)
    torch.testing.assert_close(values, losses * torch.exp(-losses))
    (gradient,) = torch.autograd.grad(values.sum(), losses)
    torch.testing.assert_close(gradient, torch.exp(-losses.detach()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"packing": True}, {"packing": True, "attention": "flash_attention_2"}],
    ids=["padded", "packed", "end to end"],
)
def test_a_batch_without_data_is_shaped_as_one_of_full_rows(name, settings) -> None:
    recipe = Recipe(objective=name, micro_batch=3, seq_len=48, **settings)
    objective = objective_of(recipe)
    ids = torch.arange(3 * 48).view(3, 48)
    halves = [[Example(part, part) for part in (row[:24], row[24:])] for row in ids.tolist()]
    rows = halves if recipe.packing else [[Example(row, row)] for row in ids.tolist()]
    real = objective.collate([objective.row(row, recipe, 0) for row in rows], recipe, 0)
    dummy, ghost = objective.dummy_batch(recipe, ids), objective.dummy_batch(recipe)
    if recipe.packing:
        torch.testing.assert_close(dummy, real, rtol=0, atol=0)
    assert {column: (t.shape, t.dtype) for column, t in dummy.items()} == {
        column: (t.shape, t.dtype) for column, t in real.items()
    }
    assert {column: (t.shape, t.dtype, t.is_meta) for column, t in ghost.items()} == {
        column: (t.shape, t.dtype, True) for column, t in real.items()
    }
    plain = objective.dummy_batch(recipe, plain=True)
    assert plain.keys() == real.keys() - {"attention_mask"}


@pytest.mark.parametrize("name", NAMES)
def test_held_out_loss_is_the_cross_entropy_for_all(tiny_model, name) -> None:
    recipe = Recipe(**FP32, objective=name, packing=True)
    model = build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")
    logits = [model(torch.tensor([list(e.input_ids)])).logits[0, :-1] for e in examples()]
    targets = [torch.tensor(list(e.labels)[1:]) for e in examples()]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=IGNORED)
    assert mean_loss(model, make_tokenizer(), examples(), recipe) == pytest.approx(expected.item(), rel=1e-5)


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_the_loss_on_all_logits_is_refused_before_anything_is_fetched(autoft) -> None:
    done = autoft("plan", "nobody/has-this-model", "--gpu", "rtx-3060", *words("objective=dft", "loss=logits"))
    assert done.code == 2, done.err
    assert "objective dft needs the loss of each token: set loss to fused or selected, not logits" in done.err


SETTINGS = ("max_steps=3", "seq_len=64", "micro_batch=4", "accumulation=2", "eval_rows=4", "max_new_tokens=0")


def test_a_run_minimises_it_and_is_judged_by_the_cross_entropy(autoft, tmp_path, tiny_model, data_file) -> None:
    results = {}
    for name in NAMES:
        settings = (*words(*SETTINGS, "eval_steps=1", f"objective={name}"), "--gpu", "cpu")
        done = autoft("run", tiny_model, "--data", data_file, "-o", tmp_path / name, *settings, "--json")
        assert done.code == 0, done.err
        results[name] = json.loads(done.out)
        assert results[name]["job"]["recipe"]["objective"] == name
    sft, dft = results["sft"], results["dft"]
    assert dft["before"]["loss"] == sft["before"]["loss"]
    assert 0 < dft["losses"][0][1] < 0.5 * sft["losses"][0][1]  # p * -log(p) is 1/e at most, of random weights less
    assert dft["after"]["loss"] != sft["after"]["loss"]
    card, page = ((tmp_path / "dft" / file).read_text(encoding="utf-8") for file in ("README.md", "report.html"))
    assert "DFT loss" in card
    assert "each step (DFT loss)" in page
    assert "held-out rows, cross entropy" in page
    assert "DFT" not in (tmp_path / "sft" / "report.html").read_text(encoding="utf-8")
    scored = autoft("eval", tmp_path / "dft", "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["after"]["loss"] == pytest.approx(dft["after"]["loss"], rel=1e-3)
