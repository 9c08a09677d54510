"""`autoft estimate`: answers kept, --explain, --trace, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autoft.cli.show import show_estimate
from autoft.planner.plan.record import read_plan
from autoft.trainer.recipe import Recipe

WORDS = ("estimate", "smollm2-135m", "--gpu", "rtx-3060", "--seq-len", "256")
HEAVY = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")
# What design.md promises to scripts, and what is the command's own
CONTRACT = {
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "device_bytes",
    "fits",
    "phases",
    "components",
    "step_time_s",
    "tokens_per_s",
    "trainable_params",
    "total_params",
}


def process(*words: str) -> tuple[str, list[str]]:
    """What `autoft ...` prints in a process of its own, and the heavy libraries that it imported."""
    code = (
        "import sys\nfrom autoft.cli.main import main\n"
        f"try: main({list(words)!r})\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    # with this environment: readline, which pytest imports, puts COLUMNS into the one that would be inherited
    env = dict(os.environ)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.split()


@pytest.mark.parametrize("form", [("--json",), ("--explain",)])
def test_a_question_asked_before_is_answered_alike_without_torch(autoft, form) -> None:
    first = autoft(*WORDS, *form)
    assert first.code == 0, first.err
    again, imported = process(*WORDS, *form)
    assert imported == []
    assert again == first.out


def test_a_model_folder_is_answered_without_torch_too(autoft, tiny_model) -> None:
    words = ("estimate", str(tiny_model), "--gpu", "rtx-3060", "--json")
    first = autoft(*words)
    assert first.code == 0, first.err
    again, imported = process(*words)
    assert imported == []
    assert again == first.out


def test_no_cache_keeps_nothing_and_a_damaged_answer_is_found_anew(autoft, own_home) -> None:
    fresh = autoft(*WORDS, "--json", "--no-cache")
    assert fresh.code == 0
    assert list(own_home.iterdir()) == []
    kept = autoft(*WORDS, "--json")
    [entry] = (own_home / "estimates").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole.replace(b'"fits": "yes"', b'"fits": "no"'))
    again = autoft(*WORDS, "--json")
    assert fresh.out == kept.out == again.out
    strip = len(json.loads(whole)["answer"]["at"])
    assert abs(len(entry.read_bytes()) - len(whole)) <= strip


def test_json_has_the_contract_s_keys_and_the_explanation_where_asked(autoft) -> None:
    plain = json.loads(autoft(*WORDS, "--json").out)
    assert set(plain) >= CONTRACT
    assert "explanation" not in plain
    explained = json.loads(autoft(*WORDS, "--json", "--explain").out)
    figures = {figure["figure"]: figure for figure in explained.pop("explanation")}
    assert explained == plain
    assert figures["device_bytes"]["bytes"] == plain["device_bytes"]
    for name, num in plain["components"].items():
        assert sum(part["bytes"] for part in figures[f"components.{name}"]["parts"]) == num


@pytest.mark.parametrize("width", [40, 100])
def test_an_explanation_fits_the_width(autoft, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = autoft(*WORDS, "--explain")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= width
    for said in ("How each figure comes about", "components, weights:", "phases, load:", "rank 16 on 210"):
        assert said in " ".join(done.out.split())


@pytest.mark.parametrize(("suffix", "start"), [("html", "<!doctype html>"), ("svg", "<svg ")])
def test_a_trace_is_written_beside_the_answer(autoft, tmp_path, suffix, start) -> None:
    path = tmp_path / f"t.{suffix}"
    for _ in range(2):  # the second time the answer is known, and the trace is drawn anew
        done = autoft(*WORDS, "--json", "--trace", path)
        assert done.code == 0, done.err
        allocated = json.loads(done.out)["peak_allocated_bytes"]
        assert path.read_text(encoding="utf-8").startswith(start)
        assert f"{allocated:,}" in path.read_text(encoding="utf-8")
        path.unlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trace", "trace.png"), "--trace trace.png: neither .html nor .svg"),
        (("--trace", "trace"), "--trace trace: neither .html nor .svg"),
        (("--trace", ""), "neither .html nor .svg"),
        (("--trace", "folder.html"), "--trace folder.html: a folder"),
        (("--trace", "none/trace.html"), "--trace none/trace.html: no folder none"),
        (("--trace", "file/trace.html"), "--trace file/trace.html: no folder file"),
        (("--trace", "sealed/trace.svg"), "--trace sealed/trace.svg: sealed cannot be written to"),
        (("--cases", "c.jsonl", "--trace", "t.html"), "--cases: each case has its own model and settings"),
        (("--cases", "c.jsonl", "--explain"), "--cases: each case has its own model and settings"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_before_anything_is_rehearsed(
    autoft, tmp_path, monkeypatch, words, said
) -> None:
    if "sealed" in said and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "sealed").mkdir(mode=0o500)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    done = autoft(*(() if "--cases" in words else WORDS), *(("estimate",) if "--cases" in words else ()), *words)
    assert done.code == 2
    assert done.out == ""
    first, fix = done.err.splitlines()
    assert first.startswith(f"Error: {said}") or said in first
    assert fix.startswith("To fix: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("fits", "words"),
    [
        ({"8": "no", "12": "tight", "16": "yes", "24": "yes"}, "need 16 GiB (12 GiB is borderline)"),
        ({"8": "yes", "12": "yes"}, "need 8 GiB"),
        ({"48": "no", "80": "no"}, "need more than 80 GiB"),
    ],
)
def test_the_least_memory_of_similar_cards_is_said(fits, words) -> None:
    estimate = replace(read_plan(Path(__file__).parents[1] / "data" / "plan-gpu.toml").estimate, fits_by_gib=fits)
    printed = io.StringIO()
    show_estimate(Recipe(), estimate, "NVIDIA L4 (22.0 GiB)", Console(file=printed, width=100))
    assert f"Similar cards  {words}" in printed.getvalue()
