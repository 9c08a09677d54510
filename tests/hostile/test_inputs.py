"""Damaged and hostile files: one line that names the file and a way on, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Done
from tests.hostile.answers import assert_refused

DEEP = 3_000  # brackets within each other; Python's own limit is 1,000
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1288\n"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def train(autoft: Callable[..., Done], data_file: Path, tmp_path: Path) -> Callable[..., Done]:
    """`autoft run` of a model for a step, to tmp_path / "out"."""

    def run(model: Path, *words: str) -> Done:
        settings = ("--set", "max_steps=1", "--set", "max_new_tokens=2", "-o", tmp_path / "out")
        return autoft("run", model, "--data", data_file, "--gpu", "cpu", *settings, *words)

    return run


def header(settings: Any, more: bytes = b"") -> bytes:
    """A safetensors file with such a header."""
    text = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    return len(text).to_bytes(8, "little") + text + more


BEYOND = {"model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [10**12, 10**12 + 256]}}
WEIGHTS: dict[str, tuple[bytes, str]] = {
    "lfs pointer": (LFS, "git lfs pull"),
    "web page": (b"<!doctype html><html><body>404</body></html>", "model.safetensors"),
    "empty": (b"", "model.safetensors"),
    "pickle": (b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.", "model.safetensors"),
    "header of 2^63 bytes": (b"\xff" * 7 + b"\x7f{}", "model.safetensors"),
    "header longer than the file": ((99_000_000).to_bytes(8, "little") + b"{" + b" " * 100, "model.safetensors"),
    "offsets beyond the file": (header(BEYOND, bytes(256)), "model.safetensors"),
    "deep header": (header(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"), "model.safetensors"),
    "number of 5,000 digits": (header(b'{"a":' + b"9" * 5000 + b"}"), "model.safetensors"),
    "header is a list": (header([1]), "model.safetensors"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none_are_named(model: Path, train, tmp_path: Path, name: str) -> None:
    content, word = WEIGHTS[name]
    (model / "model.safetensors").write_bytes(content)
    assert_refused(train(model), word)
    assert not list(tmp_path.glob("out*"))


SHARD = "model-00001-of-00002.safetensors"
INDICES: dict[str, tuple[bytes, str]] = {
    "missing shard": (b'{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}', "00002-of-00002"),
    "outside the folder": (b'{"weight_map": {"model.norm.weight": "../../../etc/passwd"}}', "outside"),
    "a pickle": (b'{"weight_map": {"model.norm.weight": "pytorch_model.bin"}}', "safetensors"),
    "deep": (b'{"weight_map": ' + b"[" * DEEP + b"]" * DEEP + b"}", "model.safetensors.index.json"),
    "digits": (b'{"weight_map": {}, "a": ' + b"9" * 5000 + b"}", "model.safetensors.index.json"),
    "cut": (b'{"weight_map": {"mod', "model.safetensors.index.json"),
    "empty": (b"", "model.safetensors.index.json"),
    "not UTF-8": (b"\xff\xfe{", "model.safetensors.index.json"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_leads_nowhere_is_named(model: Path, train, name: str) -> None:
    content, word = INDICES[name]
    (model / "model.safetensors").rename(model / SHARD)
    (model / "model.safetensors.index.json").write_bytes(content)
    assert_refused(train(model), word)


LLAMA = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
FIGURES: list[dict[str, Any]] = [
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": -2},
    {"num_hidden_layers": 2.5},
    {"hidden_size": -64},
    {"hidden_size": 0},
    {"hidden_size": 10**12},
    {"intermediate_size": -1},
    {"vocab_size": -1},
    {"vocab_size": 0},
    {"vocab_size": 10**15},
    {"num_attention_heads": 0},
    {"num_attention_heads": 10**9},
    {"num_key_value_heads": 0},
    {"max_position_embeddings": -5},
    {"model_type": "mixtral", "num_local_experts": 10**9},
    {"model_type": "qwen3", "num_hidden_layers": 10**9},
    {"model_type": "qwen3", "head_dim": -8},
    {"hidden_size": "64"},
    {"hidden_size": [64]},
    {"hidden_size": {"a": 1}},
    {"hidden_size": None},
    {"model_type": "gemma3", "text_config": {**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 10**9}},
]


@pytest.mark.parametrize("changed", FIGURES, ids=str)
def test_a_configuration_with_absurd_figures_is_refused_before_anything_is_built(
    autoft, tmp_path: Path, changed: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changed}))
    assert_refused(autoft("plan", tmp_path, "--gpu", "cpu"))


CONFIGS: dict[str, bytes] = {
    "deep": b'{"model_type":"llama","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "digits": b'{"model_type":"llama","x":' + b"9" * 5000 + b"}",
    "escape in the type": json.dumps({**LLAMA, "model_type": "\x1b]0;owned\x07llama"}).encode(),
    "escape in a key": json.dumps({**LLAMA, "\x1b[31mx": 1, "hidden_size": -1}).encode(),
    "a list": b"[1]",
    "a text": b'"llama"',
    "empty": b"",
    "cut": b'{"model_type": "lla',
    "not UTF-8": b'{"model_type": "\xff"}',
    "type is a number": b'{"model_type": 7}',
    "type is a list": b'{"model_type": ["llama"]}',
    "lfs pointer": LFS,
    "NaN": b'{"model_type": "llama", "hidden_size": NaN}',
    "infinite": b'{"model_type": "llama", "hidden_size": 1e999}',
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_none_is_named(autoft, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes(CONFIGS[name])
    assert_refused(autoft("plan", tmp_path, "--gpu", "cpu"))
