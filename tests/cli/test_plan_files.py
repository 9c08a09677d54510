"""What the command line does with plan files: runs them again after a look, compares them, exports them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from autoft.planner.plan.record import read_plan
from autoft.planner.search.candidates import describe

OLD = Path(__file__).parent.parent / "data" / "plan-v1.toml"


@pytest.fixture
def plan_file(autoft, tiny_model, data_file, tmp_path) -> Callable[..., Path]:
    """`plan_file(name, *words)`: a real plan of the tiny model."""

    def make(name: str, *words: object) -> Path:
        path = tmp_path / name
        base = ("--data", data_file, "--gpu", "cpu", "--set", "max_steps=1", "--set", "max_new_tokens=0")
        done = autoft("plan", tiny_model, *base, *words, "-o", path)
        assert done.code == 0, done.err
        return path

    return make


def edit(path: Path, **values: object) -> None:
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^{key} = [^#\n]*", f"{key} = {value} ", text, count=1)
        assert count == 1, key
    path.write_text(text, encoding="utf-8")


def test_an_edit_that_does_not_fit_is_refused_and_leaves_nothing(autoft, plan_file, tmp_path) -> None:
    path, out = plan_file("plan.toml"), tmp_path / "out"
    edit(path, micro_batch=10_000_000, seq_len=512)
    done = autoft("run", path, "-o", out)
    assert done.code == 3, done.err
    error, fix = done.err.splitlines()[-2:]
    described = describe(read_plan(path).job.recipe)  # in fp32 on a CPU that has no bfloat16
    assert error.startswith(f"Error: {path}: {described.split(',')[0]}, micro-batch 10000000, 512 tokens, needs ")
    assert " GiB more than usable on CPU (" in error
    assert "[job] was edited since it was planned: it needs " in error
    assert fix == "To fix: undo the edit, free memory, or plan again; --force runs it all the same"
    assert not list(tmp_path.glob("*out*"))
    done = autoft("run", path, "-o", out, "--json")
    assert done.code == 3
    assert json.loads(done.out)["error"]["exit_code"] == 3


def test_force_runs_what_does_not_fit_and_says_so(autoft, plan_file, tmp_path, monkeypatch) -> None:
    path, out = plan_file("plan.toml"), tmp_path / "out"
    # hardly any of this machine's memory counts as usable: the plan itself has not changed
    monkeypatch.setattr("autoft.planner.estimator.target.RAM_USABLE", 1e-6)
    refused = autoft("run", path, "-o", out)
    assert refused.code == 3, refused.err
    assert "; less memory than planned for: " in refused.err
    assert not out.exists()
    done = autoft("run", path, "-o", out, "--force", "--json")
    assert done.code == 0, done.err
    assert re.search(r"Note: --force: LoRA \((bf16|fp32) base\), [^:]* more than usable", " ".join(done.err.split()))
    assert (out / "result.json").is_file()


def test_an_edit_that_fits_is_run_and_what_has_changed_is_told_beside_json(
    autoft, plan_file, data_file, tmp_path
) -> None:
    path, out = plan_file("plan.toml"), tmp_path / "out"
    edit(path, rank=8)
    with data_file.open("a") as file:
        file.write(json.dumps({"prompt": "one more", "completion": "row"}) + "\n")
    done = autoft("run", path, "-o", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["job"]["recipe"]["rank"] == 8
    notes = [line for line in done.err.splitlines() if line.startswith("Note: ")]
    assert notes[0].startswith("Note: [job] was edited since it was planned")
    assert notes[1].startswith("Note: the data is not what was planned with: 37 rows to train on (36 then)")
    # what lies in the run's folder is a plan of that very run
    kept, planned = read_plan(out / "plan.toml"), read_plan(path)
    assert kept.job == planned.job
    assert kept.inputs != planned.inputs
    assert kept.workload is not None
    assert kept.workload.rows == 37
    again = autoft("run", out / "plan.toml", "-o", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert "edited" not in again.err
    assert "the data is not" not in again.err


def test_diff_tells_what_differs_for_people_and_scripts(autoft, plan_file, monkeypatch) -> None:
    a, b = plan_file("a.toml"), plan_file("b.toml", "--method", "qlora", "--set", "epochs=2")
    done = autoft("plan", "--diff", a, b)
    assert done.code == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    for line in ("What is run a.toml b.toml", "method lora qlora", "quant_type - nf4", "epochs 3 2"):
        assert line in lines
    assert any(line.startswith("components.quantization_state - ") for line in lines)
    found = json.loads(autoft("plan", "--diff", a, b, "--json").out)
    assert (found["a"], found["b"], found["same"]) == (str(a), str(b), False)
    assert {"group": "choice", "key": "job.recipe.method", "a": "lora", "b": "qlora"} in found["differences"]
    assert {d["group"] for d in found["differences"]} >= {"choice", "memory", "time"}
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, autoft("plan", "--diff", a, b).out.splitlines())) <= 40


def test_diff_of_the_same_plan_and_of_an_older_file(autoft, tmp_path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(read_plan(OLD).to_toml(), encoding="utf-8")
    done = autoft("plan", "--diff", OLD, copy)
    # a terminal breaks a long path wherever it ends
    assert (done.code, "".join(done.out.split())) == (0, f"{OLD}and{copy}arethesameplan")
    assert json.loads(autoft("plan", "--diff", OLD, copy, "--json").out)["differences"] == []


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("plan", "--diff", OLD), "requires 2 arguments"),
        (("plan", "--diff", OLD, "nope.toml"), "nope.toml: No such file"),
        (("plan", "starter", "--diff", OLD, OLD), "--diff compares two plan files and plans nothing"),
        (("plan", "--diff", OLD, OLD, "--gpu", "cpu"), "--diff compares two plan files and plans nothing"),
        (("export-config", OLD), "Missing option '--to'"),
        (("export-config", OLD, "--to", "axolot"), "--to axolot: not known. Did you mean axolotl?"),
        (("export-config", "nope.toml", "--to", "trl"), "nope.toml: No such file"),
        (("export-config", OLD, "--to", "trl", "-o", "no/such/x.yaml"), "not a file that can be written"),
        (("export-config", OLD, "--to", "trl"), "mine.jsonl: no such file"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(autoft, tmp_path, monkeypatch, words, what) -> None:
    monkeypatch.chdir(tmp_path)
    done = autoft(*words)
    assert done.code == 2, done.err
    assert what in done.err.splitlines()[-2]
    assert done.err.splitlines()[-1].startswith("To fix: ")
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_export_config_prints_or_writes(autoft, plan_file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_file("plan.toml")
    before = set(tmp_path.iterdir())
    done = autoft("export-config", plan, "--to", "trl")
    assert done.code == 0, done.err
    assert "\nuse_peft: true\n" in done.out
    assert done.err == "Note: the data that it names is written with -o FILE, such as -o plan-trl.yaml\n"
    assert set(tmp_path.iterdir()) == before
    done = autoft("export-config", plan, "--to", "llamafactory", "-o", "lf.yaml")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "Next: llamafactory-cli train lf.yaml"
    assert {path.name for path in (tmp_path / "lf-data").iterdir()} == {
        "train.jsonl",
        "test.jsonl",
        "dataset_info.json",
    }
    found = json.loads(autoft("export-config", plan, "--to", "unsloth", "-o", "u.py", "--json").out)
    assert (found["tool"], found["command"]) == ("unsloth", "python u.py")
    assert found["config"] == Path("u.py").read_text(encoding="utf-8")
    assert found["files"][0] == "u.py"
    assert all(Path(name).is_file() for name in found["files"])
    assert found["notes"]
