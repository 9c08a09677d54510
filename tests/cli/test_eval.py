"""`autoft eval` on runs of a tiny model: what the run found is found again, and other rows are judged too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from autoft.trainer.result import Evaluation, RunResult
from tests.conftest import write_jsonl

# The tests that need no data of their own share one run of each kind.
KINDS = {
    "lora": ("base_dtype=float32", "loss=fused"),
    "nf4": ("method=qlora", "quant_type=nf4", "kbit_upcast=true", "base_dtype=float32", "loss=selected"),
    "full": ("method=full", "base_dtype=float32", "loss=selected"),
}


def run(autoft, tiny_model: Path, data: Path, out: Path, kind: str) -> RunResult:
    settings = ("max_steps=3", "max_new_tokens=12", "learning_rate=0.01", *KINDS[kind])
    words = [word for setting in settings for word in ("--set", setting)]
    done = autoft("run", tiny_model, "--data", data, "--gpu", "cpu", "-o", out, *words)
    assert done.code == 0, done.err
    return RunResult.from_dict(json.loads((out / "result.json").read_text(encoding="utf-8")))


def figures_of(evaluation: Evaluation | dict[str, float | None]) -> dict[str, float]:
    known = evaluation if isinstance(evaluation, dict) else evaluation.to_dict()
    return {name: value for name, value in known.items() if name != "seconds" and value is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_judged_as_it_judged_itself(autoft, tiny_model, data_file, tmp_path, kind) -> None:
    out = tmp_path / "out"
    result = run(autoft, tiny_model, data_file, out, kind)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = autoft("eval", out, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["run"] == str(out)
    assert result.after.loss != result.before.loss
    for when, known in (("before", result.before), ("after", result.after)):
        assert figures_of(found[when]) == pytest.approx(figures_of(known), rel=1e-6), when
    assert [sample["expected"][:6] for sample in found["samples"]] == ["it is "] * 4
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    general = found["general"]
    assert general["rows"] == 40
    assert general["change"]["lower"] <= general["after"] - general["before"] <= general["change"]["upper"]
    if kind == "lora":
        judged_in_other_forms(autoft, out, found)
        judged_on_other_rows(autoft, out, data_file, tmp_path)


def judged_in_other_forms(autoft, out: Path, found: dict[str, Any]) -> None:
    """A merged model answers as its adapter does, but for rounding; one in 4 bits is another, and both are told."""
    done = autoft("eval", out, "--also", "merged", "--also", "nf4", "--json")
    assert done.code == 0, done.err
    judged = json.loads(done.out)
    assert judged["after"]["loss"] == found["after"]["loss"]
    merged, nf4 = judged["variants"]
    assert (merged["name"], nf4["name"]) == ("merged", "nf4")
    assert merged["evaluation"]["loss"] == pytest.approx(found["after"]["loss"], rel=1e-4)
    assert nf4["evaluation"]["loss"] != pytest.approx(found["after"]["loss"], rel=1e-4)
    assert judged["changes"] == {}  # of four rows


def judged_on_other_rows(autoft, out: Path, data_file: Path, tmp_path: Path) -> None:
    """Beside the run, not in a test of its own: a run takes seconds."""
    done = autoft("eval", out, "--rows", 2)
    assert done.code == 0, done.err
    assert "\n2 held-out rows " in done.out
    for name in ("Before", "After", "Wanted", "perplexity", "last number right"):
        assert name in done.out
    rows = [{"q": f"number {n}", "a": '{"n": 1}'} for n in range(3)] + [{"q": "long " * 99, "a": '{"n": 1}'}]
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    done = autoft("eval", out, "--data", other, "--map", "prompt=q,completion=a", "--json")
    assert done.code == 0, done.err
    judged = json.loads(done.out)
    assert (judged["data"], judged["after"]["rows"], judged["after"]["generated_rows"]) == (str(other), 4, 3)
    assert judged["after"]["json_valid"] == 0.0
    assert judged["after"]["number_match"] is None
    assert "1 rows are longer than" in judged["notes"][0]
    done = autoft("eval", out, "--data", data_file, "--json")
    assert "36 of these 40 rows were trained: the figures flatter" in done.err
    judged = json.loads(done.out)
    change = judged["changes"]["loss"]
    assert change["lower"] <= judged["after"]["loss"] - judged["before"]["loss"] <= change["upper"] < 0
    shown = autoft("eval", out, "--data", data_file)
    assert re.search(r"loss, nats a token +\d\.\d{3} +\d\.\d{3} +-\d\.\d{3} to -\d\.\d{3}", shown.out)
    assert "general prompts, loss" in shown.out
    data_file.unlink()
    done = autoft("eval", out)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"Error: {out}: the data of its run cannot be read: ")
    done = autoft("eval", out, "--data", other, "--map", "prompt=q,completion=a")
    assert f"whether these rows were trained is not known: {data_file} cannot be read" in " ".join(done.err.split())
    (out / "tokenizer.json").write_text("{", encoding="utf-8")
    done = autoft("eval", out, "--data", other, "--map", "prompt=q,completion=a")
    assert done.code == 2
    assert f"Error: {out / 'tokenizer.json'}: not the file that the run wrote" in done.err
    done = autoft("eval", out, "--data", other, "--map", "prompt=q,completion=a", "--accept-changes")
    assert done.code == 2
    assert f"Error: {out}: its tokenizer cannot be read" in done.err
    (out / "adapter_config.json").unlink()
    assert "its adapter_config.json is gone" in autoft("chat", out, "-p", "hello").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("{here}/none",),
            "Error: {here}/none: holds no finished run\nTo fix: give the folder that `autoft run` wrote",
        ),
        (("{here}/cut",), "To fix: autoft resume {here}/cut goes on with the unfinished one"),
        (("{here}",), "Error: {here}: holds no finished run"),
        (("{here}/none", "--map", "prompt=q"), "Error: --map goes with --data"),
        (("{here}/none", "--also", "gguf"), "Error: --also gguf: not known.\nTo fix: one of: merged, nf4, int8"),
        (("{here}/none", "--rows", "0"), "Error: Invalid value for '--rows'"),
        ((), "Error: Missing argument 'DIR'"),
    ],
)
def test_bad_input_is_one_line(autoft, tmp_path, words, message) -> None:
    (tmp_path / "cut.unfinished").mkdir()
    done = autoft("eval", *(word.format(here=tmp_path) for word in words))
    assert (done.code, done.out) == (2, "")
    assert message.format(here=tmp_path) in done.err
    assert "Traceback" not in done.err
