"""The names under which a run's model and data are published, and the paths behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.storage.places import (
    LOCAL,
    private_job,
    public_job,
    public_name,
    read_places,
    without_paths,
    write_places,
)

CACHE = "/home/anna/.cache/huggingface/hub"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/anna/models/tiny", "tiny"),
        ("~/rows.jsonl", "rows.jsonl"),
        (f"{CACHE}/models--org--small-1B/snapshots/0123", "org/small-1B"),
        (f"{CACHE}/models--org--small-GGUF/snapshots/0123/small.gguf", "small.gguf"),
        ("org/small-1B", "org/small-1B"),
        ("models/tiny", "models/tiny"),
        ("starter", "starter"),
        ("/", "/"),
    ],
)
def test_a_path_has_a_name_to_publish(path: str, name: str) -> None:
    assert public_name(path) == name


def test_the_paths_come_back_where_the_names_are_still_theirs(tmp_path: Path) -> None:
    job = Job(model="/srv/tiny", data="~/rows.jsonl", eval_data="more.jsonl", recipe=Recipe())
    write_places(tmp_path, job, Path("/srv/tiny"))
    public = public_job(job)
    assert (public.model, public.data, public.eval_data) == ("tiny", "rows.jsonl", "more.jsonl")
    assert private_job(public, tmp_path) == job
    edited = Job(model="other", data=public.data, recipe=Recipe())
    assert private_job(edited, tmp_path).model == "other"
    (tmp_path / LOCAL).write_text("{")
    assert read_places(tmp_path) == {}
    assert private_job(public, tmp_path) == public


def test_paths_are_taken_out_of_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    job = Job(model="/srv/tiny", data="/srv/tiny/rows.jsonl", recipe=Recipe())
    told = {"notes": ("/srv/tiny/rows.jsonl: 3 rows", "/srv/tiny has no template"), "at": ["/home/anna/x"], "step": 1}
    assert without_paths(told, job) == {
        "notes": ("rows.jsonl: 3 rows", "tiny has no template"),
        "at": ["~/x"],
        "step": 1,
    }
