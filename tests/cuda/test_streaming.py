"""A base that waits in the host's memory, on a described card: copies on a stream of their own, the same weights."""

from __future__ import annotations

import json
import signal

import pytest

from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from tests.conftest import write_jsonl
from tests.cuda.runs import events_of, run, weights_of

LAYERS = 5
STREAMED = {"gradient_checkpointing": "true", "base_dtype": "float32", "streamed_layers": LAYERS}


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


def test_memory_that_cannot_be_pinned_is_copied_all_the_same(on_card, deep_model, data_file, tmp_path):
    pinned = on_card("rtx3060", truth=True).warm(*run(deep_model, data_file, tmp_path / "pinned", **STREAMED))
    assert pinned.code == 0, pinned.err
    refused = on_card("rtx3060", truth=True, fault="no-pinning")
    done = refused.warm(*run(deep_model, data_file, tmp_path / "out", **STREAMED))
    assert done.code == 0, done.err
    assert "could not be pinned" in done.err
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "pinned")


def test_a_killed_run_that_streams_goes_on_to_the_same_weights(on_card, deep_model, data_file, tmp_path):
    card = on_card("rtx3060", truth=True)
    quiet = card.warm(*run(deep_model, data_file, tmp_path / "quiet", **STREAMED))
    assert quiet.code == 0, quiet.err
    words = run(deep_model, data_file, tmp_path / "out", **STREAMED)
    killed = card.warm("kill", 3, "", *words, call="tests.cuda.hurt:main")
    assert killed.code == -signal.SIGKILL, killed.err
    resumed = card.warm("resume", tmp_path / "out", "--json")
    assert resumed.code == 0, resumed.err
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "quiet")


def test_two_cards_that_stream_learn_what_one_does(on_card, deep_model, data_file, tmp_path):
    card = on_card("rtx3090", gpus=2, truth=True)
    two = card.warm(*run(deep_model, data_file, tmp_path / "two", num_gpus=2, **STREAMED))
    assert two.code == 0, two.err
    one = card.warm(*run(deep_model, data_file, tmp_path / "one", num_gpus=1, accumulation=2, **STREAMED))
    assert one.code == 0, one.err
    assert two.json["losses"] == [[step, pytest.approx(loss, rel=1e-2)] for step, loss in one.json["losses"]]


def test_a_step_that_streams_goes_on_after_memory_ran_out(on_card, deep_model, tmp_path):
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "long.jsonl"
    write_jsonl(path, [{"prompt": f"n {n}", "completion": f"{n} " * 75} for n in range(80)])
    recipe = Recipe(
        rank=4, alpha=8.0, micro_batch=8, seq_len=256, base_dtype="float32", loss="logits", gradient_checkpointing=True,
        streamed_layers=LAYERS,
    )  # fmt: skip
    job = Job(
        model=str(deep_model), data=str(path), recipe=recipe, device="cuda", max_steps=4, accumulation=1,
        learning_rate=0.01, max_new_tokens=0, eval_rows=16, save_steps=2,
    ).to_dict()  # fmt: skip
    spec = {"job": job, "out": str(tmp_path / "quiet")}
    quiet = on_card("rtx3060", truth=True).warm(json.dumps(spec), call="tests.cuda.taken:main")
    assert quiet.code == 0, quiet.err
    result = json.loads(quiet.out.splitlines()[-1])
    leave = int(0.7 * (result["measured"]["peak_bytes"] - result["memory_bytes"]))
    spec = {"job": job, "out": str(tmp_path / "out"), "when": "step", "leave": leave}
    done = on_card("rtx3060", truth=True, shared=True).warm(json.dumps(spec), call="tests.cuda.taken:main")
    assert done.code == 0, done.err
    assert done.refused > 0
    assert [event["change"] for event in events_of(tmp_path / "out", "recovered")] == ["micro_batch"]
    expected = load_file(tmp_path / "quiet" / "adapter_model.safetensors")
    for name, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
