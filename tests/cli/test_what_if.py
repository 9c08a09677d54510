"""`autoft plan`'s what-if questions and `autoft compare` on the command line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from autoft.cli.compare import show
from autoft.cli.what_if import show_limit
from autoft.planner.what_if.compare import Comparison
from autoft.planner.what_if.limits import Limit

SMALL = "smollm2-135m"


def in_words(print_to: Callable[[Console], None], width: int) -> str:
    """What is printed at that width, which it keeps to, as one line."""
    file = io.StringIO()
    print_to(Console(width=width, file=file))
    assert max(map(len, file.getvalue().splitlines())) <= width
    return " ".join(file.getvalue().split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-seq", "--max-rank"), "--max-seq and --max-rank: two questions"),
        (("--max-seq", "--seq-len", "64"), "--seq-len and --max-seq: both set what the question varies"),
        (("--max-rank", "--set", "rank=4"), "--set rank and --max-rank: both set what the question varies"),
        (("--max-batch", "--set", "micro_batch = 4"), "--set micro_batch and --max-batch"),
        (("--fit-all-gpus", "--gpu", "t4"), "--gpu and --fit-all-gpus"),
        (("--fit-all-gpus", "--vram", "8"), "--vram and --fit-all-gpus"),
        (("--max-seq", "-o", "plan.toml"), "-o: --max-seq makes no plan to write"),
        (("--model-sweep", "smolm2", "--gpu", "t4"), "smolm2: no model family of the catalogue"),
    ],
)
def test_what_contradicts_itself_is_refused_in_a_line(autoft, tmp_path, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    done = autoft("plan", SMALL, *words)
    assert done.code == 2
    assert done.out == ""
    first, fix = done.err.splitlines()
    assert first.startswith(f"Error: {said}")
    assert fix.startswith("To fix: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "2"), "--steps: nothing is measured"),
        (("--measure", "--gpu", "t4"), "--measure runs on this machine, and --gpu and --vram plan for another"),
        (("--measure", "--vram", "8"), "--measure runs on this machine"),
        (
            ("--gpu", "t4", "--set", "quant_type=nf4", "--set", "method=qlora"),
            "--set method: a comparison",
        ),
    ],
)
def test_a_comparison_refuses_too(autoft, words, said) -> None:
    done = autoft("compare", SMALL, *words)
    assert done.code == 2
    assert done.err.startswith(f"Error: {said}")


def test_a_limit_in_json_and_in_words(autoft) -> None:
    words = ("--vram", "0.9", "--method", "lora", "--set", "gradient_checkpointing=true")
    done = autoft("plan", SMALL, *words, "--max-seq", "--json")
    assert done.code == 0, done.err
    limit = Limit.from_dict(json.loads(done.out))
    best = limit.best
    assert best.value is not None
    assert best.next_value == best.value + 64
    for width in (40, 100):
        out = in_words(lambda console: show_limit(limit, console), width)
        assert f"{best.value:,} tokens (sequence length)" in out
        assert f"{best.next_value:,} tokens would need" in out


def test_nothing_exits_with_three(autoft) -> None:
    done = autoft("plan", SMALL, "--vram", "0.7", "--max-rank", "--json")
    assert done.code == 3
    error = json.loads(done.out)["error"]
    assert error["exit_code"] == 3
    assert "at any rank" in error["what"]


@pytest.mark.parametrize(("width", "family"), [(40, "tinyllama"), (120, "smollm2")])
def test_a_sweep_fits_the_width(autoft, monkeypatch, width, family) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    resident = ("--set", "streamed_layers=0")
    done = autoft("plan", SMALL, "--vram", "1.2", "--seq-len", "512", "--model-sweep", family, *resident)
    out = " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= width
    assert " short (QLoRA NF4, 1 row, checkpointing)" in out
    if family == "smollm2":
        assert done.code == 0, done.err
        assert re.search(r"Fits \d of \d models", out)
        assert "Model Weights Plan Needs Time" in out
    else:
        assert done.code == 3


def test_a_sweep_names_what_is_streamed(autoft) -> None:
    done = autoft("plan", SMALL, "--vram", "1.2", "--seq-len", "512", "--model-sweep", "tinyllama")
    assert done.code == 0, done.err
    assert re.search(r"QLoRA NF4, \d rows?, checkpointing, \d+ layers streamed", " ".join(done.out.split()))


def test_a_comparison_fits_every_width(autoft, wide_shape) -> None:
    done = autoft("compare", wide_shape, "--gpu", "rtx-3060", "--seq-len", "128", "--json")
    assert done.code == 0, done.err
    found = Comparison.from_dict(json.loads(done.out))
    for width in (40, 80, 100, 200):
        out = in_words(lambda console: show(found, console), width)
        for said in ("LoRA, 8-bit", "Smallest card", "QLoRA when memory decides", "arXiv:2305.14314"):
            assert said in out
