"""The largest that fits, found over few rehearsals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.planner.search.bisection import largest


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=200),
    st.integers(0, 20_000),
    st.integers(0, 250),
    st.sampled_from([None, -1.0, 0.0, 0.01, 1.0, 1e3, 1e9]),
)
def test_the_largest_that_fits_is_found_and_the_next_was_asked_too(
    steps: list[int], room: int, near: int, rise: float | None
) -> None:
    needs = [sum(steps[: number + 1]) for number in range(len(steps))]
    asked = []

    def need(value: int) -> int:
        asked.append(value)
        return needs[value]

    place = largest(range(len(needs)), need, room, near=near, rise=None if rise is None else lambda _: rise)
    fitting = [number for number, bytes_ in enumerate(needs) if bytes_ <= room]
    assert place == (fitting[-1] if fitting else -1)
    assert place + 1 == len(needs) or place + 1 in asked
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("power", [1, 2])
def test_a_long_range_is_searched_in_few_steps(power: int) -> None:
    asked = []

    def need(value: int) -> int:
        asked.append(value)
        return 5 * 2**30 + 700_000 * value**power

    assert largest(range(64, 131_073, 64), need, need(16_384) + 1) == 16_384 // 64 - 1
    assert len(asked) <= 12


def test_beside_a_similar_one_a_few_answers_do() -> None:
    asked = []

    def need(value: int) -> int:
        asked.append(value)
        return 5 * 2**30 + 700_000 * value

    assert largest(range(64, 131_073, 64), need, need(16_384) + 1, near=240) == 255
    assert len(asked) <= 1 + 4


def test_what_the_first_answer_tells_leads_to_the_second() -> None:
    asked = []

    def need(value: int) -> int:
        asked.append(value)
        return 5 * 2**30 + 700_000 * value

    room = need(16_384) + 1
    asked.clear()
    assert largest(range(64, 131_073, 64), need, room, near=15, rise=lambda _: 700_000) == 255
    assert asked[1:] == [16_384, 16_448]
