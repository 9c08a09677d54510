"""`autoft merge` and `autoft export`: what is printed, what is refused in one line, and what is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from autoft.trainer.export import EXPORTERS
from autoft.trainer.export.staging import RECORD
from tests.trainer.exports import save_adapter, save_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain PEFT folder beside its base."""
    folder = tmp_path_factory.mktemp("exports")
    return save_adapter(save_base(folder / "base"), folder / "adapter")


def run_tiny(autoft, model: Path, data: Path, out: Path, *settings: str) -> Path:
    words = [word for setting in ("max_steps=3", "max_new_tokens=0", *settings) for word in ("--set", setting)]
    done = autoft("run", model, "--data", data, "--gpu", "cpu", "-o", out, *words)
    assert done.code == 0, done.err
    return out


def test_a_run_over_four_bits_is_merged_into_its_16_bit_base(autoft, tiny_model, data_file, tmp_path) -> None:
    settings = ("method=qlora", "quant_type=nf4", "base_dtype=float32", "learning_rate=0.01")
    run = run_tiny(autoft, tiny_model, data_file, tmp_path / "run", *settings)
    done = autoft("merge", run, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    written = json.loads(done.out)
    assert written["lineage"]["trained_over"] == "nf4"
    assert written["texts"] == "4 held-out rows"
    assert written["drift"]["max_logit"] < 1e-3
    assert written["bytes"] == sum(path.stat().st_size for path in (tmp_path / "merged").iterdir())
    done = autoft("merge", run, "-o", tmp_path / "merged")
    assert (done.code, done.out) == (2, "")
    assert "holds an export\nTo fix: -o another folder, or --force to replace it" in done.err
    # another base than the run began with
    other = shutil.copytree(tiny_model, tmp_path / "other")
    save_base(other, tie_word_embeddings=True, seed=7)
    done = autoft("merge", run, "-o", tmp_path / "again", "--base", other)
    assert done.code == 2
    assert f"Error: {other}: not the weights that {run} was trained on" in done.err
    assert not (tmp_path / "again").exists()


def test_a_plain_peft_folder_is_taken_and_what_is_missing_is_said(autoft, adapter, tmp_path) -> None:
    done = autoft("merge", adapter, "-o", tmp_path / "merged")
    assert done.code == 0, done.err
    assert "Note: not a folder of autoft: no result.json" in done.out
    assert "Note: judged on bundled prompts: the folder names no data" in done.out
    assert "base + adapter" in done.out
    assert json.loads((tmp_path / "merged" / RECORD).read_text(encoding="utf-8"))["run_sha256"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("merge", "{here}/none"), "holds no finished run"),
        (("export", "{adapter}", "--to", "ggf"), "--to ggf: not known. Did you mean gguf"),
        (
            ("export", "{adapter}", "--to", "gguf", "--quant", "q4_k"),
            "--quant q4_k: not a type of gguf. Did you mean q4_k_s",
        ),
        (("export", "{adapter}", "--to", "vllm", "--quant", "f16"), "--quant: vllm has no choice of types"),
        (
            ("export", "{adapter}", "--to", "ollama", "--name", "my model!"),
            "--name my model!: not a name that Ollama takes",
        ),
        (("merge", "{here}/mine"), "peft_type is 'P_TUNING', and autoft opens LORA, IA3"),
        (("merge", "{here}/homeless"), "its base /nowhere/base is not here: /nowhere/base: no such folder"),
        (("merge", "{here}/empty"), "its adapter_model.safetensors is missing"),
    ],
)
def test_bad_input_is_one_line(autoft, adapter, tmp_path, words, message) -> None:
    for name, settings in (
        ("mine", {"peft_type": "P_TUNING"}),
        ("homeless", {"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}),
        ("empty", {"peft_type": "LORA", "base_model_name_or_path": str(adapter.parent / "base")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    given = [word.format(here=tmp_path, adapter=adapter) for word in words]
    done = autoft(*given, "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("Error: ")]) == 1
    assert "\nTo fix: " in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_drift_past_the_bound_is_refused_and_kept_with_force(autoft, tmp_path) -> None:
    """Wide weights in bfloat16: what rounding loses is much of the update."""
    base = save_base(tmp_path / "base", dtype=torch.bfloat16, initializer_range=1.0)
    adapter = save_adapter(base, tmp_path / "adapter", std=0.3)
    done = autoft("merge", adapter, "-o", tmp_path / "out")
    assert (done.code, done.out) == (1, "")
    assert "log-probs differ from base and adapter by" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    done = autoft("merge", adapter, "-o", tmp_path / "out", "--force", "--json")
    assert done.code == 0, done.err
    written = json.loads(done.out)
    assert written["kept_past_bound"]
    assert written["drift"]["mean_logprob"] > written["bound"]["nats"]
    assert "kept by --force" in written["notes"][-1]


def test_the_command_lists_the_kinds_that_there_are() -> None:
    from autoft.cli.export import KINDS

    assert set(KINDS) == set(EXPORTERS)
