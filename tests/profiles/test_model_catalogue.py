from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from autoft.errors import FileFormatError
from autoft.profiles.model_catalogue import ModelProfile, find_model, model_profiles

PROFILES = model_profiles()
# What no document was found for
NOT_FOUND = {
    "exaone-4.5-33b": ("chat_template", "stop_tokens"),
    "falcon-h1-7b-instruct": ("chat_template", "stop_tokens"),
    **dict.fromkeys((name for name in PROFILES if re.fullmatch(r"falcon-h1-.*-base", name)), ("stop_tokens",)),
}
# What QLoRA refuses, and how it begins
REFUSED = {"falcon-7b": "no layer of FalconForCausalLM can be quantized to 4 bits"}


def test_models_of_every_size_and_family() -> None:
    assert len(PROFILES) >= 180
    counts = sorted(model.parameters or 0 for model in PROFILES.values())
    assert (counts[0], counts[-1]) == (124_439_808, 235_093_634_560)
    assert {model.config["model_type"] for model in PROFILES.values()} >= {
        "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text", "phi",
        "phi3", "gpt_neox", "gpt2", "opt", "bloom", "falcon", "stablelm", "olmo2", "olmoe", "granite", "starcoder2",
        "cohere2", "internlm3", "exaone4", "nemotron", "deepseek_v2", "glm4", "gpt_oss", "smollm3", "qwen3_5",
        "qwen3_5_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "gemma4", "mistral3", "granitemoehybrid",
        "lfm2", "lfm2_moe", "lfm2_vl", "olmo3", "nemotron_h", "glm4_moe", "glm4_moe_lite", "exaone4_5", "seed_oss",
        "apertus", "arcee", "afmoe", "hunyuan_v1_dense", "falcon_h1", "ernie4_5", "ernie4_5_moe", "llama4", "mllama",
        "smolvlm", "kimi_linear", "vaultgemma",
    }  # fmt: skip


def test_hub_ids_and_names_are_unique() -> None:
    names = [name.casefold() for m in PROFILES.values() for name in (m.name, m.hub_id)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("model", PROFILES.values(), ids=list(PROFILES))
def test_a_profile_says_all_but_its_revision(model: ModelProfile) -> None:
    for field in dataclasses.fields(model):
        if field.name not in ("revision", "gated", "notes", "config_null", *NOT_FOUND.get(model.name, ())):
            assert getattr(model, field.name), field.name
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.hub_id)
    assert ("vocab_size" in model.config) or "text_config" in model.config
    assert all(note == note.strip() and not note.endswith(".") for note in model.notes)


def config_of(model: ModelProfile) -> Any:
    from transformers import AutoConfig

    settings = model.full_config
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


@pytest.mark.parametrize("model", PROFILES.values(), ids=list(PROFILES))
def test_transformers_builds_as_many_parameters_as_were_published(model: ModelProfile) -> None:
    import torch

    from autoft.trainer.sources.suitable import auto_class

    config = config_of(model)
    with torch.device("meta"):
        built = auto_class(config).from_config(config, dtype=torch.bfloat16)
        built.tie_weights()
    assert sum(parameter.numel() for parameter in built.parameters()) == model.parameters


FORMULA = re.compile(r"counted from the figures of config[^:]*: ([\d x+()]+)$")


@pytest.mark.parametrize(
    "model", [m for m in PROFILES.values() if FORMULA.search(m.parameters_source)], ids=lambda m: m.name
)
def test_counts_that_are_written_out_are_right(model: ModelProfile) -> None:
    found = FORMULA.search(model.parameters_source)
    assert found is not None
    assert eval(found[1].replace("x", "*")) == model.parameters  # digits, x, + and parentheses alone


def smallest_of_each_type() -> list[ModelProfile]:
    """All of a type are built alike; their parameters are counted one by one above."""
    found: dict[str, ModelProfile] = {}
    for model in sorted(PROFILES.values(), key=lambda model: model.parameters):
        found.setdefault(str(model.config["model_type"]), model)
    return list(found.values())


@pytest.mark.slow
def test_a_model_of_every_type_is_estimated_or_refused_in_a_line() -> None:
    from autoft.errors import InputError
    from autoft.planner.plan.exact import make_estimate
    from autoft.planner.request import Request
    from autoft.profiles.detect import detect

    hardware = dataclasses.replace(detect(), gpus=())
    settings = ("method=qlora", "gradient_checkpointing=true")
    # every third: docs/models_table.py trains a model of each type, and its page is checked in parts of its own
    some = sorted(model.name for model in smallest_of_each_type())[::3]
    for name in sorted({*some, *REFUSED}):
        model = PROFILES[name]
        request = Request(model=model.name, gpu="rtx-4090", seq_len=512, settings=settings)
        if model.name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[model.name]):
                make_estimate(request, hardware)
        else:
            estimate = make_estimate(request, hardware).estimate
            assert estimate.total_params - estimate.trainable_params == model.parameters


@pytest.mark.parametrize("name", ["qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", "qwen/qwen2.5-1.5b-instruct"])
def test_a_model_by_name_or_hub_id(name: str) -> None:
    model = find_model(name)
    assert model is not None
    assert model.hub_id == "Qwen/Qwen2.5-1.5B-Instruct"


def test_an_unknown_model_is_none() -> None:
    assert find_model("somebody/else") is None


def test_a_profile_survives_its_own_toml() -> None:
    for model in PROFILES.values():
        assert ModelProfile.from_toml(model.to_toml()) == model


def test_keys_that_are_null_reach_transformers() -> None:
    assert "q_lora_rank" in PROFILES["deepseek-v2-lite"].config_null
    assert config_of(PROFILES["deepseek-v2-lite"]).q_lora_rank is None
    assert config_of(PROFILES["mistral-7b-v0.3"]).sliding_window is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence_url": ""}, "unknown key licence_url"),
        ({"revision": "main"}, "revision must be a commit, 40 hexadecimal digits"),
        ({"parameters": 0}, "parameters = 0"),
        ({"parameters_source": " "}, "parameters need a parameters_source"),
        ({"base_dtype": "bf16"}, "base_dtype = 'bf16' is not known"),
        ({"config": {}}, "config has no model_type"),
        ({"config_null": ["vocab_size"]}, "a key is in config and in config_null"),
    ],
)
def test_wrong_profiles_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=re.escape(message)):
        ModelProfile.from_dict({**PROFILES["smollm2-135m"].to_dict(), **change})


def test_the_catalogue_is_listed_quickly_and_without_torch() -> None:
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "autoft", "profiles", "models", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    after = os.times()
    assert len(json.loads(done.stdout)["models"]) == len(PROFILES)
    assert not re.search(r"\| +(torch|transformers|huggingface_hub)$", done.stderr, re.MULTILINE)
    # 0.3 s; the processor's, which other processes do not lengthen by much
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3
