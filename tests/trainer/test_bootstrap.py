"""The interval of a change between two evaluations of the same rows."""

from __future__ import annotations

import random

import pytest

from autoft.trainer.evaluation.bootstrap import changes, interval


def coins(share: float, rows: int, seed: int) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    return [(float(draw.random() < share), 1.0) for _ in range(rows)]


def test_rows_that_change_by_the_same_have_no_spread() -> None:
    before = [(float(n), 2.0) for n in range(10)]
    after = [(value + 1.0, weight) for value, weight in before]
    assert interval(before, after) == pytest.approx((0.5, 0.5))


def test_it_covers_the_true_change_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        lower, upper = interval(coins(0.3, 60, seed), coins(0.6, 60, seed + 1000))
        covered += lower <= 0.3 <= upper
    assert 180 <= covered <= 199


def test_more_rows_narrow_it() -> None:
    few, many = (interval(coins(0.3, rows, 1), coins(0.6, rows, 2)) for rows in (20, 2000))
    assert many[1] - many[0] < (few[1] - few[0]) / 5


def test_rows_count_by_their_weight() -> None:
    before, after = [(0.0, 1.0)] * 9 + [(0.0, 1e9)], [(1.0, 1.0)] * 9 + [(0.0, 1e9)]
    lower, _ = interval(before, after)
    assert lower == pytest.approx(0.0, abs=1e-6)


def test_few_rows_and_other_rows_say_nothing() -> None:
    rows = coins(0.5, 5, 1)
    assert set(changes({"loss": rows}, {"loss": rows})) == {"loss"}
    assert changes({"loss": rows[:4]}, {"loss": rows[:4]}) == {}
    assert changes({"loss": rows}, {}) == {}
