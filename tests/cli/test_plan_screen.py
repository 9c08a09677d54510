"""The plan's screen as it looks, at three widths; and that what it leaves out is found elsewhere.

`AUTOFT_GOLDEN=1 python -m pytest tests/cli/test_plan_screen.py` writes golden/*.txt anew: look at what git shows.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autoft.cli.show_plan import show_details, show_plan
from autoft.planner.plan.record import Plan, read_plan

DATA, GOLDEN = Path(__file__).parents[1] / "data", Path(__file__).parent / "golden"
ON_GPU, ON_CPU = read_plan(DATA / "plan-gpu.toml"), read_plan(DATA / "plan-cpu.toml")
OLDER = [read_plan(DATA / name) for name in ("plan-v1.toml", "plan-v1-sentences.toml")]


def with_room(share: float) -> Plan:
    """The plan on a card of which it takes this share."""
    available = int(ON_GPU.estimate.device_bytes / share)
    fits = "yes" if share <= 1 else "no"
    return replace(ON_GPU, estimate=replace(ON_GPU.estimate, available_bytes=available, fits=fits))


PLANS = {"fits": ON_GPU, "edge": with_room(0.97), "does-not-fit": with_room(1.2), "cpu": ON_CPU}


def shown(plan: Plan, width: int, show=show_plan) -> str:
    printed = io.StringIO()
    show(plan, Console(file=printed, width=width))
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", PLANS)
def test_the_screen_looks_as_it_did(name: str, width: int) -> None:
    text, file = shown(PLANS[name], width), GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("AUTOFT_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_fits_a_terminal_of_24_lines_with_what_the_command_says_below_it(name: str) -> None:
    below = 2  # what to type next, and where the rest is
    assert len(shown(PLANS[name], 80).splitlines()) + below <= 24


@pytest.mark.parametrize("plan", [ON_GPU, ON_CPU, *OLDER])
def test_what_the_screen_leaves_out_is_told_by_explain_and_by_json(plan: Plan) -> None:
    everything = [*plan.reasons, *plan.estimate.assumptions, *plan.pruned, *(a.reason for a in plan.alternatives)]
    assert len(everything) > 8
    explained = " ".join(shown(plan, 80, show_details).split())
    data = json.loads(json.dumps(plan.to_dict()))
    told = [*data["reasons"], *data["estimate"]["assumptions"], *data["pruned"]]
    told += [alternative["reason"] for alternative in data["alternatives"]]
    for text in everything:
        assert " ".join(text.split()) in explained
        assert text in told
    assert [record["text"] for record in data["reason_records"]] in ([], data["reasons"])
    assert [record["text"] for record in data["estimate"]["assumption_records"]] in (
        [],
        data["estimate"]["assumptions"],
    )


def test_notes_stay_on_the_screen() -> None:
    plan = replace(ON_GPU, notes=("3 rows are left out: longer than --seq-len", "another"))
    text = shown(plan, 80)
    assert all(f"Note: {note}" in text for note in plan.notes)


def test_new_words_change_the_words_of_the_screen_alone() -> None:
    reworded = tuple(replace(reason, text=f"Reworded {reason.key}") for reason in ON_GPU.reason_records)
    text = shown(replace(ON_GPU, reasons=tuple(r.text for r in reworded), reason_records=reworded), 80)
    why = text.partition("Why\n")[2].partition("Instead\n")[0].splitlines()
    assert why == ["  - Reworded method", "  - Reworded gradient_checkpointing", "  - Reworded accumulation"]
    assert text.partition("Why\n")[0] == shown(ON_GPU, 80).partition("Why\n")[0]


@pytest.mark.parametrize(("share", "words"), [(0.5, "comfortable"), (0.9, "close"), (0.96, "at the edge")])
def test_how_near_the_limit_it_runs_is_said_in_words(share: float, words: str) -> None:
    memory = next(line for line in shown(with_room(share), 80).splitlines() if line.startswith("  Memory"))
    assert memory.endswith(f"({share:.0%}): {words}")


def test_the_command_ends_with_what_to_type_next_and_where_the_rest_is(autoft, tiny_model, monkeypatch) -> None:
    monkeypatch.chdir(tiny_model.parent)  # a long path takes a line more
    done = autoft("plan", tiny_model.name, "--gpu", "rtx-3060", "--seq-len", 64)
    *_, following, more = done.out.splitlines()
    assert following.startswith("Next: autoft run ")
    assert more.startswith("More: --explain")
    assert len(done.out.splitlines()) <= 24
    explained = autoft("plan", tiny_model.name, "--gpu", "rtx-3060", "--seq-len", 64, "--explain").out
    for title in ("Every reason", "What the figures assume", "Not tried", "How each figure comes about"):
        assert title in explained


def test_a_full_card_and_a_borderline_plan_are_shown_as_what_they_are() -> None:
    full = replace(ON_GPU, estimate=replace(ON_GPU.estimate, available_bytes=0, fits="no"))
    assert "of 0.00 GiB usable: does not fit" in shown(full, 80)
    tight = replace(ON_GPU, estimate=replace(with_room(1.01).estimate, fits="tight"))
    assert "(101%): borderline, fits only if the allocator frees its cache" in shown(tight, 120)
