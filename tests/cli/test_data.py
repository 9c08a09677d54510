"""Data of any columns, from a folder, through plan, plan.toml and run."""

from __future__ import annotations

import json

from autoft.planner.plan.record import read_plan
from tests.conftest import write_jsonl


def test_a_mapping_travels_in_the_plan_and_reads_a_folder_alike(autoft, tiny_model, tmp_path) -> None:
    folder = tmp_path / "news"
    folder.mkdir()
    for split, rows in {"train": 40, "test": 8}.items():
        articles = [{"id": n, "title": f"{split} {n}", "body": "x", "summary": f"s {n}"} for n in range(rows)]
        write_jsonl(folder / f"{split}.jsonl", articles)
    words = r"prompt={title}\n{body},completion=summary"
    plan = tmp_path / "plan.toml"
    data = ("--data", folder, "--map", words)
    done = autoft("plan", tiny_model, *data, "--gpu", "cpu", "--set", "max_steps=1", "-o", plan, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["workload"]["rows"], found["workload"]["heldout_rows"]) == (40, 8)
    assert found["notes"][:3] == [
        f"--map {words}: {folder}/train.jsonl:1 reads user 'train 0 x', assistant 's 0'",
        "not used: column id",
        "held out: 8 rows of its split 'test'",
    ]
    assert read_plan(plan).job.mapping == words
    ran = autoft("run", plan, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert (result["rows"], result["after"]["rows"]) == (40, 8)
    assert result["sample"]["prompt"] == "test 0\nx"
    assert result["job"]["mapping"] == words


def test_unknown_columns_are_shown_a_mapping_to_give(autoft, tiny_model, tmp_path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"topic": "a", "essay": f"b {n}"} for n in range(40)])
    done = autoft("plan", tiny_model, "--data", rows, "--gpu", "cpu")
    assert done.code == 2
    assert "for example --map prompt=topic,completion=essay, which makes of it: user 'a', assistant 'b 0'" in done.err
    mapped = ("--map", "prompt=topic", "--map", "completion=essay")
    assert autoft("plan", tiny_model, "--data", rows, "--gpu", "cpu", *mapped).code == 0
