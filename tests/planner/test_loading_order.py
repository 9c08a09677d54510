"""The order in which threads load: every event of the load phase stays, only its place is drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.layers import pairs
from autoft.planner.rehearsal.rehearse import rehearse
from autoft.trainer.recipe import Recipe
from tests.planner.test_rehearsal import BF16, LLAMA

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def loading_order():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import loading_order
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return loading_order


@pytest.fixture(scope="module")
def rehearsal():
    recipe = Recipe.from_dict({**BF16, "method": "qlora", "quant_type": "nf4", "optimizer": "adamw_torch"})
    return rehearse(recipe, LLAMA, Device((8, 6)), depth=None)


def test_a_race_tells_the_same_events_in_an_order_of_its_own(loading_order, rehearsal) -> None:
    ordered = list(pairs(rehearsal.phases[0].events))
    raced = [list(pairs(race.phases[0].events)) for race in loading_order.races(rehearsal)]
    assert all(sorted(race) == sorted(ordered) for race in raced)
    assert len({tuple(race) for race in raced}) > 1
    for race in raced:
        living: set[int] = set()
        for key, size in race:
            assert (key in living) == (size < 0)
            living ^= {key}


def test_a_seed_names_one_race(loading_order, rehearsal) -> None:
    first, second = (next(loading_order.races(rehearsal)) for _ in range(2))
    assert first.phases[0].events.tolist() == second.phases[0].events.tolist()


def test_a_single_weight_has_nothing_to_race_with(loading_order, rehearsal) -> None:
    load = loading_order.interleaved(rehearsal.phases[0], rehearsal.kinds, 1, seed=0)
    assert load.events.tolist() == rehearsal.phases[0].events.tolist()


def test_the_results_cover_every_measured_run(loading_order) -> None:
    recorded = json.loads((RESULTS / "loading_order.json").read_text(encoding="utf-8"))
    lines = [line for name in loading_order.FILES for line in (loading_order.ROWS / name).read_text().splitlines()]
    assert [run["id"] for run in recorded["runs"]] == [json.loads(line)["id"] for line in lines]
