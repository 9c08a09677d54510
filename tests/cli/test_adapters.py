"""Kinds of adapter beside LoRA: planned, trained, opened by plain peft and asked; what a kind has no place for."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from autoft.errors import ModelError
from autoft.trainer.adapters import ADAPTERS
from autoft.trainer.loop.engine import Engine
from autoft.trainer.model.build import build_model
from autoft.trainer.recipe import Recipe

SETTINGS = ("max_steps=2", "seq_len=64", "micro_batch=4", "accumulation=1", "eval_rows=4", "max_new_tokens=4")
OTHERS = sorted(name for name, kind in ADAPTERS.items() if kind.on_layers and name != "lora")
QUANTIZED = ("method=qlora", "quant_type=nf4", "double_quant=true")


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.parametrize("base", [(), QUANTIZED], ids=["whole base", "nf4"])
@pytest.mark.parametrize("name", OTHERS)
def test_it_is_planned_trained_saved_opened_and_asked(autoft, tmp_path, tiny_model, data_file, name, base) -> None:
    settings, out = words(*SETTINGS, *base, f"adapter={name}"), tmp_path / "out"
    planned = autoft("plan", tiny_model, "--data", data_file, *settings, "--gpu", "cpu", "--json")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    assert plan["job"]["recipe"]["adapter"] == name
    assert plan["job"]["learning_rate"] == ADAPTERS[name].learning_rate
    assert not any(reason["key"] == "rank" for reason in plan["reason_records"])

    done = autoft("run", tiny_model, "--data", data_file, "-o", out, *settings, "--gpu", "cpu", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["steps"], result["job"]["recipe"]) == (2, plan["job"]["recipe"])
    counts = ("trainable_params", "total_params")
    assert [result[count] for count in counts] == [plan["estimate"][count] for count in counts]
    about = [reason["text"] for reason in plan["reason_records"] if reason["key"] == "adapter"]
    assert bool(about) == (name == "oft")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"An adapter ({name.upper()}) for" in card
    assert "rank" not in card.partition("How to use it")[0]

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        opened = PeftModel.from_pretrained(model, out)
        assert not torch.equal(opened(ids).logits, before)
    trained = [p for weight, p in opened.named_parameters() if ADAPTERS[name].owns(weight)]
    assert sum(parameter.numel() for parameter in trained) == result["trainable_params"]

    asked = autoft("chat", out, "-p", "number 7", "--max-new-tokens", 4, "--json")
    assert asked.code == 0, asked.err
    scored = autoft("eval", out, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["after"]["loss"] == pytest.approx(result["after"]["loss"], rel=1e-3)

    merged = autoft("merge", out, "-o", tmp_path / "merged", "--json")
    assert merged.code == 0, merged.err
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():  # merged weights are rounded to the base's 16 bits
        torch.testing.assert_close(whole(ids).logits, opened(ids).logits, rtol=0, atol=5e-3)
    given = ("--from-adapter", out, "--data", data_file, *words(*SETTINGS), "--gpu", "cpu", "--json")
    again = autoft("run", *given, "-o", tmp_path / "again")
    assert again.code == 0, again.err
    assert json.loads(again.out)["job"]["recipe"]["adapter"] == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("adapter=ia3", "rank=8"), "adapter ia3 has no rank: leave rank out"),
        (("adapter=ia3", "use_dora=true"), "adapter ia3 has no use_dora: leave use_dora out"),
        (("adapter=oft", "rank=8"), "adapter oft has no rank: leave rank out"),
        (("oft_block_size=8",), "adapter lora has no oft_block_size: leave oft_block_size out"),
        (
            ("adapter=oft", "oft_block_size=30"),
            "oft_block_size 30 does not divide the 64 inputs of model.layers.0.self_attn.q_proj",
        ),
        (("adapter=ia", "rank=8"), "adapter = 'ia' is not known"),
        (("method=full", "adapter=ia3"), "method full trains the weights themselves and has no adapter"),
    ],
)
def test_what_a_kind_has_no_place_for_is_refused(autoft, tiny_model, settings, message) -> None:
    done = autoft("plan", tiny_model, "--gpu", "rtx-3060", *words(*settings))
    assert done.code == 2, done.err
    assert message in done.err


def test_a_question_of_rank_is_refused_where_there_is_none(autoft, tiny_model) -> None:
    done = autoft("fit", tiny_model, "--rank", "--gpu", "rtx-3060", "--set", "adapter=ia3")
    assert done.code == 2, done.err
    assert "what is trained has no rank" in done.err
    done = autoft("plan", tiny_model, "--min-rank", 8, "--gpu", "rtx-3060", "--set", "adapter=ia3")
    assert done.code == 2, done.err
    assert "--min-rank: ia3 has no rank" in done.err


def test_a_preset_s_rank_gives_way_to_a_kind_that_has_none(autoft, tiny_model, data_file) -> None:
    words_ = ("--preset", "chatbot", "--gpu", "rtx-3060", "--set", "adapter=ia3", "--set", "seq_len=64", "--json")
    done = autoft("plan", tiny_model, "--data", data_file, *words_)
    assert done.code == 0, done.err
    assert json.loads(done.out)["job"]["recipe"]["rank"] == Recipe().rank


def test_every_kind_says_what_it_is() -> None:
    for name, kind in ADAPTERS.items():
        assert kind.name == name
        assert kind.source
        assert kind.settings <= Recipe.__dataclass_fields__.keys()


def test_lora_fa_trains_b_alone_and_takes_less(autoft, tmp_path, tiny_model, data_file) -> None:
    settings = words(*SETTINGS, "freeze_a=true")
    planned = {}
    for name, value in (("lora", "false"), ("lora-fa", "true")):
        done = autoft("estimate", tiny_model, "--gpu", "rtx-3060", "--set", f"freeze_a={value}", "--json")
        assert done.code == 0, done.err
        planned[name] = json.loads(done.out)
    assert planned["lora-fa"]["trainable_params"] < planned["lora"]["trainable_params"]
    assert planned["lora-fa"]["total_params"] == planned["lora"]["total_params"]
    assert planned["lora-fa"]["disk_bytes"]["save"] == planned["lora"]["disk_bytes"]["save"]
    assert planned["lora-fa"]["peak_allocated_bytes"] < planned["lora"]["peak_allocated_bytes"]

    out = tmp_path / "out"
    done = autoft("run", tiny_model, "--data", data_file, "-o", out, *settings, "--gpu", "cpu", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out)
    weights = dict(opened.named_parameters())
    trained = sum(each.numel() for name, each in weights.items() if ".lora_B." in name)
    assert result["trainable_params"] == trained
    fresh = build_model(
        Recipe.from_dict(result["job"]["recipe"]), config=opened.config, weights=tiny_model, device="cpu", seed=0
    )
    for name, drawn in fresh.named_parameters():
        if ".lora_" in name:
            assert torch.equal(weights[name], drawn) == (".lora_A." in name), name
    assert "An adapter" not in (out / "README.md").read_text(encoding="utf-8")
    assert "LoRA-FA of rank 16" in (out / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_holds_the_a_that_is_not_trained(tiny_model) -> None:
    """Drawn at random by another PyTorch it might be another."""
    recipe = Recipe(base_dtype="float32", loss="logits", freeze_a=True)
    model = build_model(recipe, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu")
    kept = Engine._weights(SimpleNamespace(model=model, recipe=recipe))
    adapter = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert kept.keys() == adapter
    assert {name for name in adapter if kept[name].requires_grad} == {name for name in adapter if ".lora_B." in name}


def test_oft_is_not_combined_nor_given_to_what_takes_lora_alone(autoft, tmp_path, tiny_model, data_file) -> None:
    out, settings = tmp_path / "out", words(*SETTINGS, "adapter=oft", "oft_block_size=16")
    done = autoft("run", tiny_model, "--data", data_file, "-o", out, *settings, "--gpu", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["oft_block_size"] == 16
    refused = autoft("adapters", "combine", out, out, "-o", tmp_path / "sum")
    assert refused.code == 2
    assert "PEFT has no sum of OFT adapters" in refused.err
    refused = autoft("export", out, "--to", "vllm", "-o", tmp_path / "vllm")
    assert refused.code == 2
    assert "vLLM takes LoRA alone, and this is OFT" in refused.err


def test_oft_on_layers_that_peft_has_no_rotation_for_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=64, n_head=4, n_layer=2, vocab_size=128)
    with pytest.raises(ModelError, match=r"adapter oft: Target module Conv1D\(.*\) is not supported"):
        build_model(Recipe(adapter="oft"), config=config, weights=None, device="meta")
