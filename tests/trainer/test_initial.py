"""LoRA that begins with a part of the base's weights: PEFT's mathematics over a base that stays as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from autoft.cli.main import main
from autoft.errors import ModelError, Resumable
from autoft.planner.plan.record import read_plan
from autoft.trainer.adapters.initial import FROM_WEIGHTS
from autoft.trainer.events import Step
from autoft.trainer.model.build import build_model
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.session import resume, run
from tests.conftest import write_forty_rows

ADAPTER = "adapter_model.safetensors"
BASE = ("max_steps=3", "seq_len=64", "micro_batch=4", "accumulation=1", "eval_rows=4", "max_new_tokens=0", "rank=4")
LEARNS = ("learning_rate=0.003", "base_dtype=float32", "dropout=0.1", "init=pissa", "lora_plus_ratio=4")
IDS = torch.arange(4, 20).unsqueeze(0)


def words(*settings: str) -> list[str]:
    return ["--gpu", "cpu", *(word for setting in settings for word in ("--set", setting))]


def built(folder: Path, **settings: Any) -> Any:
    recipe = Recipe(**{"base_dtype": "float32", "loss": "logits", "rank": 4} | settings)
    return build_model(recipe, config=AutoConfig.from_pretrained(folder), weights=folder, device="cpu").eval()


def by_peft(folder: Path, init: str, **settings: Any) -> Any:
    config = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=init, **settings)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config).eval()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module")
def here(tiny_model, tmp_path_factory) -> Path:
    """`out`, a run that began with PiSSA, on `data.jsonl`."""
    folder = tmp_path_factory.mktemp("initial")
    write_forty_rows(folder / "data.jsonl")
    given = ["run", tiny_model, "--data", folder / "data.jsonl", "-o", folder / "out", *words(*BASE, *LEARNS)]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in given])
    assert not ended.value.code
    return folder


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_begins_and_learns_as_peft_has_it(tiny_model, init, more) -> None:
    ours, theirs = built(tiny_model, init=init, **more), by_peft(tiny_model, init, **more)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-4)
    expected, learnt = gradients(theirs), gradients(ours)
    assert learnt.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(learnt[name], gradient, rtol=1e-3, atol=1e-5)
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(dict(ours.named_parameters())[name], weight, rtol=1e-4, atol=1e-5)


def test_the_randomized_decomposition_is_near_the_exact_one(tiny_model) -> None:
    exact, found = built(tiny_model, init="pissa"), built(tiny_model, init="pissa_niter_16")
    for layer, other in zip(exact.modules(), found.modules(), strict=True):
        if hasattr(layer, "lora_A") and layer.lora_A:
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            near = other.lora_B["default"].weight @ other.lora_A["default"].weight
            assert 0.97 * product.norm() < near.norm() <= product.norm() * (1 + 1e-5)


@pytest.mark.parametrize("init", sorted(FROM_WEIGHTS))
def test_the_base_stays_and_the_model_begins_as_the_base(tiny_model, init) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = built(tiny_model, init=init)
    torch.testing.assert_close(model(IDS).logits, base(IDS).logits, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, base(IDS).logits)
    again = built(tiny_model, init=init)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_orthogonal_begins_with_a_product_of_zero(tiny_model) -> None:
    model, base = built(tiny_model, init="orthogonal"), AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.testing.assert_close(model(IDS).logits, base(IDS).logits, rtol=1e-3, atol=1e-3)
    assert all(weight.any() for name, weight in model.named_parameters() if ".lora_B." in name)


def test_what_is_saved_is_plain_lora_for_the_unchanged_base(here, tiny_model) -> None:
    result = json.loads((here / "out" / "result.json").read_text(encoding="utf-8"))
    config = json.loads((here / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)
    script = (
        "import sys, torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\nids = torch.arange(4, 20).unsqueeze(0)\n"
        "base = model(ids).logits\nmodel = PeftModel.from_pretrained(model, sys.argv[2]).eval()\n"
        "tuned = model(ids).logits\n"
        "with model.disable_adapter():\n    same = torch.equal(model(ids).logits, base)\n"
        "print(same, (tuned - base).abs().max().item() > 1e-3)"
    )
    given = [sys.executable, "-c", script, tiny_model, here / "out"]
    opened = subprocess.run(given, capture_output=True, text=True, check=False)
    assert opened.stdout.split() == ["True", "True"], opened.stderr
    assert result["after"]["loss"] < result["before"]["loss"]
    card = (here / "out" / "README.md").read_text(encoding="utf-8")
    assert "LoRA+ with PiSSA init of rank 4, alpha 32 (saved as plain LoRA of rank 8, alpha 64)" in card


def test_the_saved_adapter_scores_as_the_trained_one(autoft, here) -> None:
    result = json.loads((here / "out" / "result.json").read_text(encoding="utf-8"))
    scored = autoft("eval", here / "out", "--json")
    assert scored.code == 0, scored.err
    figures = json.loads(scored.out)
    assert figures["after"]["loss"] == pytest.approx(result["after"]["loss"], abs=1e-4)
    assert figures["before"]["loss"] == pytest.approx(result["before"]["loss"], abs=1e-4)


def test_it_is_merged_and_continued_as_the_lora_that_was_saved(autoft, here, tmp_path) -> None:
    merged = autoft("merge", here / "out", "-o", tmp_path / "merged", "--json")
    assert merged.code == 0, merged.err
    settings = words(*BASE[:-1], "base_dtype=float32")
    given = ("--from-adapter", here / "out", "--data", here / "data.jsonl", "-o", tmp_path / "second")
    done = autoft("run", *given, *settings, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert {name: result["job"]["recipe"][name] for name in ("init", "rank", "alpha")} == {
        "init": "default",
        "rank": 8,
        "alpha": 64,
    }
    before = json.loads((here / "out" / "result.json").read_text(encoding="utf-8"))["after"]["loss"]
    assert result["before"]["loss"] == pytest.approx(before, abs=1e-4)
    planned = json.loads(autoft("plan", "--base-run", here / "out", *words(*LEARNS), "--json").out)
    (text,) = [reason["text"] for reason in planned["reason_records"] if reason["key"] == "init"]
    assert text.startswith("PiSSA init: saved as plain LoRA of rank 32 for the unchanged base")
    refused = autoft("plan", *given[:4], *settings, "--set", "init=pissa")
    assert refused.code == 2
    assert "from_adapter begins with the weights of that adapter: leave init pissa out" in refused.err


def test_a_stopped_run_goes_on_bit_for_bit(here, tmp_path) -> None:
    job = read_plan(here / "out" / "plan.toml").job

    def stop(event: Any) -> None:
        if isinstance(event, Step) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Resumable):
        run(job, tmp_path / "out", plan_toml=(here / "out" / "plan.toml").read_text(encoding="utf-8"), listener=stop)
    resume(tmp_path / "out", job)
    expected = load_file(here / "out" / ADAPTER)
    for name, weight in load_file(tmp_path / "out" / ADAPTER).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("init=pisa",), "init = 'pisa' is not known"),
        (
            ("init=pissa", "method=qlora", "quant_type=nf4"),
            "init pissa needs base weights in 16 or 32 bits: leave init out, or set method to lora",
        ),
        (("init=orthogonal", "rank=5"), "init orthogonal needs an even rank, not 5"),
        (("init=olora", "use_dora=true"), "init olora is saved as plain LoRA, which has no use_dora"),
        (("lora_plus_ratio=4", "freeze_a=true"), "freeze_a trains B alone: leave lora_plus_ratio out"),
        (("init=olora", "adapter=ia3"), "adapter ia3 has no init: leave init out"),
        (("init=pissa", "method=full"), "method full trains the weights themselves and has no adapter: leave init out"),
    ],
)
def test_what_cannot_begin_so_is_refused(autoft, tiny_model, settings, message) -> None:
    done = autoft("plan", tiny_model, *words(*settings))
    assert done.code == 2, done.err
    assert message in done.err


def test_a_rank_above_a_layer_s_own_is_refused_before_weights_are_read(autoft, tiny_model) -> None:
    done = autoft("plan", tiny_model, *words("init=pissa", "rank=64"))
    assert done.code == 2, done.err
    assert "init pissa: rank 64 is more than model.layers.0.self_attn.k_proj has" in done.err
    assert "--set rank=" in done.err


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_layers_without_a_matrix_are_refused(tiny_model) -> None:
    with pytest.raises(ModelError, match=r"weights of linear layers, and model\.embed_tokens is none"):
        built(tiny_model, init="pissa", target_modules=("embed_tokens",))
