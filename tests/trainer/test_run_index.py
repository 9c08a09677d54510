"""The index of runs: lines that processes append at once, lines that are damaged, and tags."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

from autoft.trainer.storage import run_index
from autoft.trainer.storage.run_index import Entry

FIRST = Entry(id="a" * 32, folder="/runs/first", at="2026-01-01T00:00:00+00:00", base="base", method="lora")


def _add(first: int) -> None:
    for number in range(first, first + 10):
        run_index.add([replace(FIRST, id=f"{number:032}", folder=f"/runs/{number}")])


def test_processes_that_add_at_once_lose_no_line() -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_add, (0, 10, 20))
    assert sorted(entry.folder for entry in run_index.entries()) == sorted(f"/runs/{n}" for n in range(30))


def test_a_line_that_was_cut_short_costs_itself_alone() -> None:
    run_index.add([FIRST])
    with run_index.path().open("a", encoding="utf-8") as file:
        file.write('{"id": "cut sh')
    other = replace(FIRST, id="b" * 32, folder="/runs/ünï")
    run_index.add([other])
    run_index.add([replace(FIRST, folder="/runs/\udc80")])  # a name that is not UTF-8 ends no run; it is not listed
    assert run_index.entries() == [FIRST, other]


def test_tags_are_of_the_run_wherever_it_lies() -> None:
    run_index.add([FIRST])
    run_index.add([FIRST])
    assert run_index.path().read_text(encoding="utf-8").count("\n") == 1
    run_index.set_tags(FIRST.id, ("best",))
    copy = replace(FIRST, folder="/elsewhere/first")
    run_index.add([copy])
    assert run_index.entries() == [replace(FIRST, tags=("best",)), replace(copy, tags=("best",))]
    run_index.set_tags(FIRST.id, ())
    assert run_index.entries() == [FIRST, copy]


def test_forgetting_a_place_keeps_other_lines_and_those_of_a_newer_version() -> None:
    run_index.add([FIRST, replace(FIRST, folder="/elsewhere/first")])
    newer = '{"id": "c", "folder": "/runs/newer", "color": "red"}\n'
    with run_index.path().open("a", encoding="utf-8") as file:
        file.write(newer)
    run_index.forget({(FIRST.id, FIRST.folder)})
    assert [entry.folder for entry in run_index.entries()] == ["/elsewhere/first"]
    assert run_index.path().read_text(encoding="utf-8").endswith(newer)
