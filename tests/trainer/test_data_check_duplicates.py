"""Rows that say the same or nearly so: planted ones are found, others are not."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from autoft.trainer.data.check.duplicates import (
    ALIKE,
    Sketches,
    first_equal,
    in_both,
    key_of,
    near_between,
    near_within,
    normalised,
    words_of,
)
from autoft.trainer.data.support_desk import generate

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k" / "test.jsonl"


def bundled() -> list[list[str]]:
    return [
        words_of(normalised(" ".join(turn["content"] for turn in row["messages"][1:])))
        for side in generate()
        for row in side
    ]


def school_maths() -> list[list[str]]:
    lines = GSM8K.read_text(encoding="utf-8").splitlines()
    return [words_of(normalised(" ".join(json.loads(line).values()))) for line in lines]


def resemblance(a: list[str], b: list[str]) -> float:
    one, two = set(itertools.pairwise(a)), set(itertools.pairwise(b))
    return len(one & two) / len(one | two)


def changed(words: list[str], rng: random.Random) -> list[str]:
    """A copy with some words replaced, put in or left out."""
    copy = list(words)
    for _ in range(rng.randint(1, max(1, len(copy) // 12))):
        at = rng.randrange(len(copy))
        copy[at : at + rng.randint(0, 1)] = rng.choice([["changed"], ["changed"], []])
    return copy


def found(rows: list[list[str]], batch: int = 300) -> np.ndarray:
    sketches = Sketches()
    for at in range(0, len(rows), batch):
        sketches.add(rows[at : at + batch])
    nearest, _ = near_within(sketches.finish(), np.ones(len(rows), dtype=bool))
    return nearest


@pytest.mark.parametrize(
    "rows",
    [
        bundled,
        pytest.param(
            school_maths, marks=pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not beside this checkout")
        ),
    ],
)
def test_planted_near_duplicates_are_found_and_nothing_else(rows) -> None:
    originals = rows()
    rng = random.Random(1)
    chosen = rng.sample(range(len(originals)), 300)
    planted = [changed(originals[index], rng) for index in chosen]
    nearest = found(originals + planted)
    assert not (nearest[: len(originals)] >= 0).any()
    met = nearest[len(originals) :] == chosen
    true = np.array([resemblance(originals[i], copy) for i, copy in zip(chosen, planted, strict=True)])
    assert (true >= 0.8).sum() > 150
    assert met[true >= 0.8].mean() >= 0.97
    assert met[true >= 0.9].all()


def test_what_all_rows_begin_with_makes_no_two_alike() -> None:
    rng = random.Random(0)
    instruction = words_of("classify the following message into one of the five categories that our team has agreed on")
    rows = [[*instruction, *(f"word{rng.randrange(500)}" for _ in range(15))] for _ in range(400)]
    assert resemblance(rows[0], rows[1]) > 0.3
    assert not (found(rows) >= 0).any()


def test_short_rows_are_not_compared() -> None:
    assert not (found([["number", str(n), "is", "even"] for n in range(50)] + [[]]) >= 0).any()


def test_neighbours_across_batches_and_rows_without_words() -> None:
    words = words_of("a long enough row of words to be compared with others of its kind")
    rows = [[], words, ["alone"], [], [*words[:-1], "type"], []]
    for batch in (1, 2, 6):
        assert found(rows, batch).tolist() == [-1, -1, -1, -1, 1, -1]


def test_near_between_names_the_other_split_s_row() -> None:
    train, heldout = bundled()[:200], bundled()[400:]
    train[7] = [*heldout[3], "again"]
    ours, theirs = Sketches(), Sketches()
    ours.add(train)
    theirs.add(heldout)
    nearest, likeness = near_between(ours.finish(), np.ones(200, dtype=bool), theirs.finish())
    assert np.flatnonzero(nearest >= 0).tolist() == [7]
    assert nearest[7] == 3
    assert likeness[7] >= ALIKE


def test_sketches_are_the_same_in_every_process() -> None:
    sketches = Sketches()
    sketches.add([words_of("some words that are counted over and over and over again")])
    done = sketches.finish()
    assert done.minima[0, :4].tolist() == [242, 254, 143, 118]
    assert done.bands[0, 0] == 1576994520


def test_case_white_space_and_unicode_form_make_no_difference() -> None:
    same = ["Café  au\nlait", "cafe\u0301 AU lait", "ｃａｆé au\u00a0lait", "ca\u200bfé au lait\x00 "]
    assert len({key_of([normalised(text)]) for text in same}) == 1
    assert key_of(["ab", "c"]) != key_of(["a", "bc"])


def test_first_equal_and_in_both() -> None:
    keys = np.array([5, 3, 5, 9, 3], dtype=np.uint64)
    assert first_equal(keys).tolist() == [0, 1, 0, 3, 1]
    assert in_both(keys, np.array([9, 7, 3], dtype=np.uint64)).tolist() == [-1, 2, -1, 0, 2]
    assert in_both(keys, np.array([], dtype=np.uint64)).tolist() == [-1] * 5
