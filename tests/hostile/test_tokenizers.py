"""A damaged tokenizer: one line that names the model, also where its library ends in a panic of Rust."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.answers import assert_refused
from tests.hostile.test_inputs import DEEP, LFS

FILES: dict[str, bytes] = {
    "cut": b'{"version": "1.0", "model": {"type": "BPE", "voc',
    "empty": b"",
    "a list": b"[]",
    "a number": b"7",
    "deep": b'{"version": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "digits": b'{"version": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"version": "\xff"}',
    "LFS pointer": LFS,
    "web page": b"<!doctype html><html><body>404</body></html>",
}
CHANGES: dict[str, dict[str, Any]] = {
    "model of no kind": {"model": {"type": "NoSuchModel"}},
    "model without a vocabulary": {"model": {"type": "BPE"}},
    "vocabulary of texts": {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
    "vocabulary below 0": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "merges of nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
    "normalizer that panics": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////AAAA"}},
    "normalizer of no kind": {"normalizer": {"type": "Evil"}},
    "pre-tokenizer with a broken pattern": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    },
    "decoder of no kind": {"decoder": {"type": "Evil"}},
    "added tokens of texts": {"added_tokens": ["<x>"]},
    "added token of a huge id": {
        "added_tokens": [
            {
                "id": 2**64, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
        ]
    },
}  # fmt: skip


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_tokenizer_is_refused(autoft, model: Path, data_file: Path, name: str) -> None:
    (model / "tokenizer.json").write_bytes(FILES[name])
    assert_refused(autoft("plan", model, "--data", data_file, "--gpu", "cpu"), "model")


@pytest.mark.parametrize("name", CHANGES)
def test_a_tokenizer_with_a_damaged_part_is_refused(autoft, model: Path, data_file: Path, name: str) -> None:
    whole = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**whole, **CHANGES[name]}))
    done = autoft("plan", model, "--data", data_file, "--gpu", "cpu")
    assert_refused(done, "model")
    assert "panicked" not in done.err


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": ' + b"[" * DEEP, b"\xff", b'{"tokenizer_class": 7}'], ids=repr)
def test_settings_of_a_tokenizer_that_are_none_are_refused(autoft, model: Path, data_file: Path, content) -> None:
    (model / "tokenizer_config.json").write_bytes(content)
    assert_refused(autoft("plan", model, "--data", data_file, "--gpu", "cpu"), "model")


def test_what_a_library_writes_to_the_standard_error_is_kept_where_nothing_panics(capfd) -> None:
    import os

    from autoft.trainer.runtime.environment import held_stderr

    with held_stderr():
        os.write(2, b"said\n")
    assert capfd.readouterr().err == "said\n"
