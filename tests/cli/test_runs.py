"""`autoft runs`, on real runs of a tiny model: found by the index, by their folders, and after they were moved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoft.cli.main import main
from autoft.trainer.storage import run_index
from autoft.trainer.storage.ownership import RESULT
from autoft.trainer.storage.run_folder import unfinished
from tests.conftest import write_jsonl

SETTINGS = {
    "learning_rate": "0.01", "base_dtype": "float32", "seq_len": "64", "micro_batch": "4", "accumulation": "1",
    "eval_rows": "4", "max_new_tokens": "4",
}  # fmt: skip


def words_of_run(model: Path, data: Path, out: Path, **changed: str) -> list[str]:
    settings = [f"{name}={value}" for name, value in {**SETTINGS, **changed}.items()]
    words = ["run", model, "--data", data, "--gpu", "cpu", "-o", out]
    return [str(word) for word in words] + [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory) -> Path:
    """Two finished runs, `short` and `long`, in runs/, and home/, the AUTOFT_HOME that knows them."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"prompt": f"number {n}", "completion": "yes"} for n in range(40)]
    data = write_jsonl(folder / "yes.jsonl", rows)
    os.environ["AUTOFT_HOME"] = str(folder / "home")
    for name, steps in (("short", "2"), ("long", "6")):
        with pytest.raises(SystemExit) as ended:
            main(words_of_run(tiny_model, data, folder / "runs" / name, max_steps=steps))
        assert not ended.value.code
    return folder


@pytest.fixture
def runs(made, tmp_path, monkeypatch) -> Path:
    """The two runs at a path that the index knows, for a test to change."""
    folder = tmp_path / "runs"
    shutil.copytree(made / "runs", folder)
    home = tmp_path / "home"
    home.mkdir()
    text = (made / "home" / "runs.jsonl").read_text(encoding="utf-8")
    (home / "runs.jsonl").write_text(text.replace(str(made / "runs"), str(folder)), encoding="utf-8")
    monkeypatch.setenv("AUTOFT_HOME", str(home))
    return folder


def listed(autoft, *words: object) -> dict[str, dict[str, object]]:
    """The runs of `autoft runs list`, by their folders' names, in order."""
    done = autoft("runs", "list", *words, "--json")
    assert done.code == 0, done.err
    return {Path(run["folder"]).name: run for run in json.loads(done.out)["runs"]}


def test_a_run_adds_itself_and_is_listed_newest_first(autoft, runs) -> None:
    by_name = listed(autoft)
    assert list(by_name) == ["long", "short"]
    result = json.loads((runs / "long" / RESULT).read_text(encoding="utf-8"))
    run = by_name["long"]
    assert (run["id"], run["state"], run["steps"]) == (result["run_id"], "finished", 6)
    assert (run["method"], run["data"], run["base"]) == ("lora", "yes.jsonl", "tiny")
    assert run["after"]["loss"] == result["after"]["loss"]
    on_disk = sum(path.stat().st_size for path in (runs / "long").rglob("*") if path.is_file())
    assert run["bytes"] == on_disk


@pytest.mark.parametrize("width", [40, 80, 130])
def test_the_list_fits_the_width(autoft, runs, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(runs)
    done = autoft("runs", "list")
    assert max(map(len, done.out.splitlines())) <= width
    assert done.out.index("long") < done.out.index("short")


def test_one_run_and_two_beside_each_other(autoft, runs, monkeypatch) -> None:
    monkeypatch.chdir(runs)
    shown = autoft("runs", "show", "short")
    assert "max_steps 2" in shown.out
    assert "Next: autoft chat short" in shown.out
    assert json.loads(autoft("runs", "show", runs / "short", "--json").out)["job"]["max_steps"] == 2
    compared = json.loads(autoft("runs", "compare", "short", "long", "--json").out)
    assert compared["settings"]["max_steps"] == [2, 6]
    assert "learning_rate" not in compared["settings"]
    losses = [run["after"]["loss"] for run in compared["runs"]]
    assert compared["scores"]["loss"] == losses
    text = autoft("runs", "compare", "short", "long").out
    assert "max_steps" in text
    assert "recipe.rank" not in text
    assert f"{losses[0]:.3f}" in text


@pytest.mark.usefixtures("runs")
def test_a_tag_names_a_run_until_it_is_removed(autoft) -> None:
    assert autoft("runs", "tag", "short", "best").code == 0
    tagged = json.loads(autoft("runs", "show", "best", "--json").out)
    assert (tagged["tags"], Path(tagged["folder"]).name) == (["best"], "short")
    assert autoft("runs", "tag", "long", "best").code == 0
    both = autoft("runs", "show", "best")
    assert (both.code, "best: 2 runs" in both.err) == (2, True)
    assert autoft("runs", "tag", "long", "best", "--remove").code == 0
    assert autoft("runs", "show", "best").code == 0
    refused = autoft("runs", "tag", "long", "be st")
    assert (refused.code, "tag be st: not a name" in refused.err) == (2, True)
    assert "has no tag bes. Did you mean best?" in autoft("runs", "tag", "short", "bes", "--remove").err


def test_a_run_that_was_moved_or_deleted_is_missing_until_its_folder_is_given(autoft, runs, tmp_path) -> None:
    autoft("runs", "tag", "short", "best")
    (runs / "short").rename(tmp_path / "elsewhere")
    shutil.rmtree(runs / "long")
    by_name = listed(autoft)
    assert {name: run["state"] for name, run in by_name.items()} == {"short": "missing", "long": "missing"}
    assert by_name["short"]["data"] == "yes.jsonl"
    assert "Missing: moved or deleted." in " ".join(autoft("runs", "list").out.split())
    (moved,) = listed(autoft, tmp_path / "elsewhere").values()
    assert (moved["state"], moved["tags"]) == ("finished", ["best"])
    assert {name: run["state"] for name, run in listed(autoft).items()} == {"elsewhere": "finished", "long": "missing"}
    assert json.loads(autoft("runs", "clean", "--yes", "--json").out)["missing"] == [str(runs / "long")]
    assert list(listed(autoft)) == ["elsewhere"]


def test_the_index_is_rebuilt_from_folders(autoft, runs) -> None:
    before = listed(autoft)
    run_index.path().write_text('not json\n{"id": 5}\n{"id": "cut', encoding="utf-8")
    assert listed(autoft) == {}
    assert listed(autoft, runs) == before
    assert listed(autoft) == before
    nothing = autoft("runs", "list", runs.parent / "none")
    assert (nothing.code, "no such folder" in nothing.err) == (2, True)


def test_a_home_that_cannot_be_written_hides_no_run(autoft, runs, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path / "file"))
    done = autoft("runs", "list", runs, "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["runs"]) == 2
    assert "Note: not added to the list" in done.err


def test_a_result_that_cannot_be_read_and_one_from_before_run_ids(autoft, runs) -> None:
    for name, change in (("short", {"steps": "many"}), ("long", {"run_id": None})):
        result = json.loads((runs / name / RESULT).read_text(encoding="utf-8"))
        (runs / name / RESULT).write_text(json.dumps({**result, **change}), encoding="utf-8")
    by_name = listed(autoft, runs)
    assert {name: run["state"] for name, run in by_name.items()} == {"long": "finished", "short": "damaged"}
    assert len(by_name["long"]["id"]) == 32
    refused = autoft("runs", "compare", "short", "long")
    assert (refused.code, "its settings are not known" in refused.err) == (2, True)


def test_what_names_no_run(autoft, runs) -> None:
    unknown = autoft("runs", "show", "shrt")
    assert (unknown.code, "shrt: no such run. Did you mean short?" in unknown.err) == (2, True)
    assert autoft("runs", "compare", "short").code == 2
    assert autoft("runs", "compare", "short", "short").code == 2
    assert "autoft runs show" in autoft("runs", runs / "short").err
    assert "Did you mean list" in autoft("runs", "lst").err


def test_clean_leaves_running_and_finished_runs_and_what_is_not_ours(autoft, made, runs, tiny_model) -> None:
    """A run is killed: it can be resumed, and goes only where that is asked for."""
    out = runs / "killed"
    words = words_of_run(tiny_model, made / "yes.jsonl", out, max_steps="100000", save_steps="1")
    process = subprocess.Popen(
        [sys.executable, "-m", "autoft", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        ends = time.monotonic() + 120
        while "killed" not in listed(autoft):
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.5)
        assert listed(autoft)["killed"]["state"] == "running"
        busy = json.loads(autoft("runs", "clean", "--interrupted", "--yes", "--json").out)
        assert busy["removals"] == []
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert listed(autoft)["killed"]["state"] == "interrupted"
    notes = unfinished(out) / "notes.txt"
    notes.write_text("mine", encoding="utf-8")
    assert json.loads(autoft("runs", "clean", "--yes", "--json").out)["removals"] == []
    would = json.loads(autoft("runs", "clean", "--interrupted", "--json").out)
    assert (would["removed"], [removal["what"] for removal in would["removals"]]) == (False, ["run"])
    assert would["bytes"] > 10_000
    assert (unfinished(out) / "plan.toml").exists()
    done = json.loads(autoft("runs", "clean", "--interrupted", "--yes", "--json").out)
    assert done["left"] == [f"{out}: notes.txt"]
    assert [path.name for path in unfinished(out).iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["killed.unfinished", "long", "short"]


def test_clean_removes_checkpoints_that_a_finished_run_has_left(autoft, runs) -> None:
    left = runs / "long" / "checkpoints" / "step-00000006"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{}", encoding="utf-8")
    would = json.loads(autoft("runs", "clean", "--json").out)
    assert would["removals"] == [{**would["removals"][0], "what": "checkpoints", "bytes": 2}]
    assert autoft("runs", "clean").out.endswith("To remove: --yes\n")
    assert autoft("runs", "clean", "--yes").code == 0
    assert not (runs / "long" / "checkpoints").exists()
    assert listed(autoft)["long"]["state"] == "finished"
