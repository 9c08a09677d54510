from __future__ import annotations

import pytest

from autoft.errors import FileFormatError
from autoft.profiles.model_catalogue import ModelProfile, find_model, model_profiles


def test_models() -> None:
    assert {model.hub_id for model in model_profiles().values()} == {
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-3B-Instruct",
        "HuggingFaceTB/SmolLM2-135M",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    }
    assert model_profiles()["qwen2.5-3b-instruct"].licence == "qwen-research"
    assert all({"model_type", "hidden_size", "num_hidden_layers"} <= set(m.config) for m in model_profiles().values())


@pytest.mark.parametrize("name", ["qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", "qwen/qwen2.5-1.5b-instruct"])
def test_a_model_by_name_or_hub_id(name: str) -> None:
    model = find_model(name)
    assert model is not None
    assert model.hub_id == "Qwen/Qwen2.5-1.5B-Instruct"


def test_an_unknown_model_is_none() -> None:
    assert find_model("somebody/else") is None


def test_a_profile_survives_its_own_toml() -> None:
    for model in model_profiles().values():
        assert ModelProfile.from_toml(model.to_toml()) == model


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(FileFormatError, match="unknown key licence_url"):
        ModelProfile.from_dict({**model_profiles()["smollm2-135m"].to_dict(), "licence_url": ""})
