"""Models refused for what they are, and adapters that go where they can: language models, no Mamba mixers."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
)

from autoft.errors import ModelError
from autoft.trainer.build import build_model
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.resolve import load_config, resolve
from autoft.trainer.run import run
from tests.conftest import make_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def refusal(config) -> ModelError:
    with pytest.raises(ModelError) as refused:
        build_model(Recipe(), config=config, weights=None, device="meta")
    return refused.value


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is an encoder, and"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification is a classifier or reward model, and",
        ),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForTokenClassification"]}, "a classifier of tokens"),
        ({"model_type": "t5"}, "t5 is an encoder-decoder, and"),
        ({"model_type": "whisper"}, "whisper is an encoder-decoder, and"),
        ({"model_type": "vit"}, "vit is not a causal language model that transformers knows"),
    ],
)
def test_what_is_no_causal_language_model_is_called_what_it_is(config, what) -> None:
    assert what in refusal(AutoConfig.for_model(**config)).what


def test_a_vision_language_model_is_refused_with_the_text_models_that_are_inside() -> None:
    inside = {"model_type": "mistral", "hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 32768}
    error = refusal(Mistral3Config(text_config=inside))
    assert error.what == "mistral3 is a vision-language model, which autoft does not train"
    assert str(error.fix).startswith("a text model: mistral-small-24b-")


def test_code_of_a_folder_is_not_run_and_said_so(tmp_path) -> None:
    config = {"model_type": "chatglm", "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration_chatglm.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ModelError, match="built by code in its folder, which autoft never runs"):
        load_config(resolve(str(tmp_path)))


def test_mamba_s_mixers_keep_what_peft_refuses() -> None:
    config = FalconH1Config(
        **SMALL, num_key_value_heads=1, vocab_size=64, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8
    )
    model = build_model(Recipe(), config=config, weights=None, device="meta")
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert {"q_proj", "in_proj", "down_proj"} <= adapted
    assert "out_proj" not in adapted


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_text_adapters_of_a_vision_language_model_leave_its_tower_alone(tmp_path, data_file, targets) -> None:
    tokenizer = make_tokenizer()
    text = {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer), "sliding_window": 64}
    vision = {**SMALL, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    base, out = tmp_path / "base", tmp_path / "out"
    Gemma3ForConditionalGeneration(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe = Recipe(base_dtype="float32", seq_len=64, micro_batch=4, loss="selected", target_modules=targets)
    job = Job(model=str(base), data=str(data_file), recipe=recipe, max_steps=2, eval_rows=4, max_new_tokens=4)
    run(job, out, plan_toml="")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    trained = {name for name, _ in model.named_parameters() if "lora_B" in name}
    assert trained
    assert all(".language_model." in name for name in trained)
    assert any(parameter.any() for name, parameter in model.named_parameters() if name in trained)  # they were loaded
