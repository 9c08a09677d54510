"""Models refused for what they are, and adapters that go where they can: no Mamba mixers."""

from __future__ import annotations

import importlib.util
import json

import pytest
from transformers import (
    AutoConfig,
    FalconH1Config,
)

from autoft.errors import ModelError
from autoft.planner.rehearsal.layers import shortened
from autoft.trainer.model.build import base_of, build_model
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_config, resolve

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
        ({"model_type": "bert"}, "bert is an encoder: its tokens see those after them"),
        ({"model_type": "bert-generation"}, "bert-generation is an encoder: its tokens see those after them"),
        ({"model_type": "paligemma"}, "the tokens of paligemma see those after them, and"),
        ({"model_type": "pi0"}, "PI0ForConditionalGeneration writes no text, and autoft trains on text"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "gemma3_text is an encoder"),
        ({"model_type": "blt"}, "blt joins bytes to patches whose lengths depend on the text"),
        ({"model_type": "kyutai_speech_to_text"}, "takes codes of a sound beside each token"),
        ({"model_type": "vit"}, "vit is not a causal language model that transformers knows"),
    ],
)
def test_what_is_no_causal_language_model_is_called_what_it_is(config, what) -> None:
    assert what in refusal(AutoConfig.for_model(**config)).what


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


def test_a_grouped_projection_gets_no_adapter() -> None:
    """Its input is cut into groups, each with weights of its own: DeepSeek V4 could not be trained with one beside."""
    config = shortened(AutoConfig.for_model("deepseek_v4"), 2)
    model = build_model(Recipe(attention="eager"), config=config, weights=None, device="meta")
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert {"q_b_proj", "o_b_proj"} <= adapted
    assert "o_a_proj" not in adapted


def test_a_loss_that_needs_a_backbone_is_refused_where_a_whole_model_is_inside() -> None:
    config = AutoConfig.for_model("kosmos-2.5")
    with pytest.raises(ModelError, match="has no backbone beside its head to fuse") as refused:
        build_model(Recipe(), config=config, weights=None, device="meta")
    assert refused.value.fix == "--set loss=logits"
    build_model(Recipe(loss="logits"), config=config, weights=None, device="meta")


@pytest.mark.parametrize(
    ("config", "library"),
    [
        # without label_names transformers asks timm for them as it reads the file
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "timm"),
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "PIL"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_library_that_is_missing_is_named_with_its_command(tmp_path, config, library) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed here")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"needs the library {library}, which is not installed") as refused:
        base_of(load_config(resolve(str(tmp_path))))
    assert refused.value.fix.startswith("pip install ")
