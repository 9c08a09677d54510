"""Settings that make no sense, and what is done where the outputs are closed or files are in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from tests.hostile.answers import assert_refused


def test_weights_that_are_no_numbers_are_not_a_finished_run(autoft, tiny_model, data_file, tmp_path) -> None:
    settings = ("--set", "max_steps=2", "--set", "max_new_tokens=2", "--set", "weight_decay=1e300")
    done = autoft("run", tiny_model, "--data", data_file, "--gpu", "cpu", *settings, "-o", tmp_path / "out")
    assert_refused(done, "not finite", code=1)
    assert not (tmp_path / "out").exists()


def test_evaluations_without_rows_are_refused_before_training(autoft, tiny_model, data_file, tmp_path) -> None:
    settings = ("--set", "eval_rows=0", "--set", "eval_steps=1")
    done = autoft("run", tiny_model, "--data", data_file, "--gpu", "cpu", *settings, "-o", tmp_path / "out")
    assert_refused(done, "eval_rows")
    assert not list(tmp_path.glob("out*"))


def test_a_run_of_one_step_learns(autoft, tiny_model, data_file, tmp_path) -> None:
    """Its one step would be the first of the warm-up, whose rate is 0."""
    from safetensors.torch import load_file

    settings = ("--set", "max_steps=1", "--set", "max_new_tokens=0")
    done = autoft("run", tiny_model, "--data", data_file, "--gpu", "cpu", *settings, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in weights.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "--seq-len", "64", "--set", "seq_len=32"), "--seq-len 64 and --set seq_len=32 differ"),
        (("estimate", "--seq-len", "64", "--set", "seq_len=32"), "--seq-len 64 and --set seq_len=32 differ"),
        (("plan", "--method", "lora", "--set", "method=qlora"), "--method lora and --set method=qlora differ"),
        (("estimate", "--rank", "8", "--set", "rank=4"), "--rank 8 and --set rank=4 differ"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_setting_with_two_values_is_refused(autoft, tiny_model, words: tuple[str, ...], said: str) -> None:
    assert_refused(autoft(words[0], tiny_model, "--gpu", "cpu", *words[1:]), said)


def test_a_setting_may_be_given_twice_and_the_last_set_wins(autoft, tiny_model) -> None:
    words = ("--seq-len", "64", "--set", "seq_len=64", "--set", "rank=4", "--set", "rank=8", "--rank", "8")
    done = autoft("estimate", tiny_model, "--gpu", "cpu", *words, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"]["rank"] == 8


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"), [(0.03, 1, 0), (0.03, 2, 1), (0.03, 100, 3), (1.0, 10, 9), (0.0, 9, 0), (0.5, 0, 0)]
)
def test_the_warm_up_never_takes_the_whole_run(ratio: float, steps: int, warmup: int) -> None:
    assert Job(model="tiny", recipe=Recipe(), warmup_ratio=ratio).warmup_steps(steps) == warmup


@pytest.mark.parametrize("words", [("estimate", "MODEL", "--gpu", "cpu"), ("plan", "nope"), ("--version",), ()])
def test_with_its_output_closed_a_command_says_so(tiny_model: Path, words: tuple[str, ...]) -> None:
    given = [str(tiny_model) if word == "MODEL" else word for word in words]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "autoft", *given],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Error: standard output is closed",
        "To fix: leave it open, or send it to a file",
    ]


def test_with_its_input_or_its_errors_closed_a_command_works() -> None:
    for closing in ("<&-", "2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "autoft", "plan", "nope"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, closing
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "MODEL", "--gpu", "cpu", "-o", "keep.toml"),
        ("estimate", "MODEL", "--gpu", "cpu", "--trace", "keep.html"),
        ("history", "--export", "keep.json"),
        ("history", "--export", "keep.csv"),
        ("export-config", "plan.toml", "--to", "trl", "-o", "keep.yaml"),
        ("data", "check", "DATA", "--fix", "keep.jsonl"),
    ],
    ids=" ".join,
)
def test_a_file_that_is_there_is_not_written_over(
    autoft, tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path(words[-1])
    kept.write_text("years of work")
    if words[0] == "export-config":
        made = autoft("plan", tiny_model, "--data", data_file, "--gpu", "cpu", "-o", "plan.toml")
        assert made.code == 0, made.err
    given = [{"MODEL": tiny_model, "DATA": data_file}.get(word, word) for word in words]
    assert_refused(autoft(*given), f"{kept}", "is there already")
    assert kept.read_text() == "years of work"
    kept.unlink()
    os.mkfifo(kept)
    assert_refused(autoft(*given), f"{kept}")
    assert kept.is_fifo()
    if words[0] != "data":
        kept.unlink()
        kept.write_text("")
        done = autoft(*given, "--force")
        assert done.code == 0, done.err
        assert kept.read_text()
