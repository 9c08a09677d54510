"""Merging, tensor by tensor: merged models compute what base and adapter do; a kill leaves old or nothing."""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from autoft.errors import OutputError
from autoft.trainer.export import merge as merging
from autoft.trainer.export.merge import merge
from autoft.trainer.export.scores import load_with_adapter
from autoft.trainer.export.source import open_source
from autoft.trainer.export.staging import MARK, RECORD, check_target, written_aside
from tests.trainer.exports import save_adapter, save_base

IDS = torch.tensor([[5, 9, 40, 77, 130, 200, 3, 60, 259, 262]])
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "rslora": ({}, {"use_rslora": True}),
    "dora": ({}, {"use_dora": True}),
    "ia3": (
        {"attention_bias": True},
        {"ia3": True, "target_modules": ["q_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "patterns": ({}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}),
    "biases": ({"attention_bias": True}, {"bias": "lora_only", "lora_bias": False}),
    "lora_bias": ({"attention_bias": True}, {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "tied, trained head": ({"tie_word_embeddings": True}, {"modules_to_save": ["lm_head"]}),
    "tied, trained embedding": ({"tie_word_embeddings": True}, {"modules_to_save": ["embed_tokens"]}),
    "untied, both trained": ({"tie_word_embeddings": False}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, adapter on the embedding": (
        {"tie_word_embeddings": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "tied, trained tokens": ({"tie_word_embeddings": True}, {"trainable_token_indices": [3, 259]}),
    "more tokens": ({"tie_word_embeddings": False}, {"add_tokens": 7}),
    "more tokens, tied": ({"tie_word_embeddings": True}, {"add_tokens": 7}),
}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_computes_what_base_and_adapter_do(tmp_path: Path, kind: str) -> None:
    base_settings, adapter_settings = KINDS[kind]
    base = save_base(tmp_path / "base", **base_settings)
    source = open_source(save_adapter(base, tmp_path / "adapter", **adapter_settings))
    (tmp_path / "out").mkdir()
    merge(source, tmp_path / "out")
    expected = logits(load_with_adapter(source, "float32"))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=1e-4)
    before = logits(AutoModelForCausalLM.from_pretrained(base))
    assert (expected[..., : before.size(-1)] - before).abs().max() > 0.1


def test_weights_keep_their_dtype_and_go_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SHARD_BYTES", 60_000)
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    source = open_source(save_adapter(base, tmp_path / "adapter"))
    out = tmp_path / "out"
    out.mkdir()
    merge(source, out)
    index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.bfloat16
    assert (logits(merged) - logits(load_with_adapter(source, "float32"))).abs().max() < 1.0
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    assert record["base"] == "base"
    assert str(tmp_path) not in json.dumps(record)
    assert json.loads((out / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == [2]
    assert "<|im_start|>" in (out / "chat_template.jinja").read_text(encoding="utf-8")


class Killer:
    """Counts calls that write through to the disk, or rename, and kills the process at one of them."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped


def killed_at(number: int, source: Any, out: Path) -> bool:
    """Whether an export was killed at the call of that number, in a process of its own."""
    child = os.fork()
    if child == 0:
        killer = Killer(number)
        for name in ("fsync", "rename", "replace", "mkdir", "open"):
            setattr(os, name, killer(getattr(os, name)))
        code = 1
        try:
            with written_aside(out, is_folder=True, force=True, needed_bytes=0) as aside:
                merge(source, aside)
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_anywhere_it_leaves_the_old_export_or_nothing(tmp_path: Path, replaces: bool) -> None:
    torch.set_num_threads(1)
    source = open_source(save_adapter(save_base(tmp_path / "base"), tmp_path / "adapter"))
    out = tmp_path / "out"
    with written_aside(tmp_path / "whole", is_folder=True, force=False, needed_bytes=0) as aside:
        merge(source, aside)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    number = kills = 0
    seen = set()
    while True:
        if replaces and not out.exists():
            out.mkdir(exist_ok=True)
            (out / RECORD).write_text('{"autoft_version": "old"}', encoding="utf-8")
        number += 1 if number < 6 else 5
        was_killed = killed_at(number, source, out)
        files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != MARK} if out.exists() else None
        old = {RECORD: b'{"autoft_version": "old"}'} if replaces else None
        if not was_killed:
            assert files == whole
            break
        kills += 1
        moved = out.with_name(".out.replaced")
        if files is None and replaces:  # between two renames: the next export puts it back
            assert (moved / RECORD).is_file()
        else:
            assert files in (old, whole)
        seen.add("whole" if files == whole else "not")
        if files == whole and replaces:
            break
    assert kills > 5
    leftovers = {path.name for path in tmp_path.iterdir()} - {"base", "adapter", "out", "whole"}
    assert leftovers <= {".out.exporting", ".out.replaced", ".out.lock"}


def test_what_is_written_over_must_be_an_export(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="a folder with other files in it"):
        check_target(tmp_path / "mine", is_folder=True, force=True)
    with (
        pytest.raises(OutputError, match=r"the export needs .* MiB, its disk has"),
        written_aside(tmp_path / "large", is_folder=True, force=False, needed_bytes=2**60),
    ):
        pass
    assert not (tmp_path / "large").exists()
