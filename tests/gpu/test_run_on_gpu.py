"""The same run on a CUDA device: LoRA and QLoRA, with what PyTorch itself counted."""

from __future__ import annotations

import json
import os

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]
COMPUTES = "STANDIN_TRUTH_FLOATS" not in os.environ  # a described card's larger results are zeros; tests/standin


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_a_run_trains_and_measures_device_memory(
    autoft, tiny_model, data_file, tmp_path, method, checkpointing
) -> None:
    settings = (
        "--set",
        "max_steps=10",
        "--set",
        "learning_rate=0.01",
        "--set",
        f"gradient_checkpointing={checkpointing}",
    )
    done = autoft(
        "run", tiny_model, "--data", data_file, "--method", method, "-o", tmp_path / "out", *settings, "--json"
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["job"]["device"] == "cuda"
    assert result["after"]["loss"] < result["before"]["loss"] or not COMPUTES
    assert 0 < result["measured"]["peak_bytes"] <= result["measured"]["peak_reserved_bytes"]


def test_chat_answers_on_the_device(autoft, tiny_model, data_file, tmp_path) -> None:
    out = tmp_path / "out"
    assert autoft("run", tiny_model, "--data", data_file, "-o", out, "--set", "max_steps=1").code == 0
    assert autoft("chat", out, "-p", "number 7", "--max-new-tokens", 4, "--json").code == 0
