"""Weights that are not all there, or not whole, are named before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from autoft.errors import ModelError
from autoft.trainer.sources.resolve import resolve
from autoft.trainer.sources.weights import INDEX, check_weights


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def sharded(folder: Path) -> Path:
    """The same weights in several files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert (folder / INDEX).is_file()
    check_weights(folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        check_weights(folder)
    return refused.value.what


def test_whole_weights_pass(folder: Path) -> None:
    check_weights(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shards = sorted(sharded(folder).glob("*.safetensors"))
    shards[1].unlink()
    assert refusal(folder) == f"{folder}: 1 of {len(shards)} weight files are missing, {shards[1].name} for one"


@pytest.mark.parametrize("in_shards", [False, True])
def test_a_git_lfs_pointer_is_named(folder: Path, in_shards: bool) -> None:
    path = sorted((sharded(folder) if in_shards else folder).glob("*.safetensors"))[-1]
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    assert refusal(folder) == f"{path}: a Git LFS pointer, which stands for the weights"


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_that_was_cut_short_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(folder).startswith(f"{path}: ")


def test_bytes_behind_the_tensors_are_seen(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "it was cut short or changed" in refusal(folder)


@pytest.mark.parametrize("weight_map", [None, [], {"a": "pytorch_model.bin"}, {"a": "../model.safetensors"}])
def test_an_index_of_anything_else_is_refused(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(folder).startswith((f"{folder / INDEX}: ", f"{folder}: "))


def test_an_adapter_s_weights_are_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert refusal(folder).endswith("a configuration but no weights: enough to plan, not to train")


def test_a_folder_with_a_model_and_an_adapter_asks_which(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a model and an adapter"):
        resolve(str(folder))
