"""A base that waits in the host's memory, on a described card: copies on a stream of their own, the same weights."""

from __future__ import annotations

import json

import pytest

from tests.cuda.runs import run

LAYERS = 5


@pytest.fixture(scope="module")
def deep_model(tiny_model, tmp_path_factory):
    """The tiny model with more layers than there are places."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "deep"
    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = None
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def adapter_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("card", ["rtx3060", "t4"])
def test_a_run_with_streamed_layers_learns_what_a_resident_one_does(on_card, deep_model, data_file, tmp_path, card):
    import torch

    settings = {"gradient_checkpointing": "true", "base_dtype": "float32"}
    there = on_card(card, truth=True)
    resident = there.warm(*run(deep_model, data_file, tmp_path / "resident", **settings))
    assert resident.code == 0, resident.err
    streamed = there.warm(*run(deep_model, data_file, tmp_path / "streamed", **settings, streamed_layers=LAYERS))
    assert streamed.code == 0, streamed.err
    assert streamed.json["job"]["recipe"]["streamed_layers"] == LAYERS
    expected = adapter_of(tmp_path / "resident")
    for name, value in adapter_of(tmp_path / "streamed").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert streamed.json["before"]["loss"] == pytest.approx(resident.json["before"]["loss"], rel=1e-5)
    assert streamed.json["measured"]["peak_bytes"] < resident.json["measured"]["peak_bytes"]


def test_qlora_streams_from_pinned_memory_and_is_asked_afterwards(on_card, deep_model, data_file, tmp_path):
    card = on_card("rtx4090", truth=True)
    words = ("--method", "qlora")
    settings = {"gradient_checkpointing": "true", "streamed_layers": 4, "quant_type": "nf4", "double_quant": "true"}
    done = card.warm(*run(deep_model, data_file, tmp_path / "out", *words, **settings))
    assert done.code == 0, done.err
    assert done.json["after"]["loss"] < done.json["before"]["loss"]
    assert done.json["after"]["generated_rows"] > 0
    asked = card.warm("chat", str(tmp_path / "out"), "-p", "n 1", "--json")
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)
