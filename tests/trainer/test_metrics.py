"""Figures of answers: each against values counted by hand or published."""

from __future__ import annotations

import pytest

from autoft.trainer.evaluation.metrics import applicable, better, f1, last_number, perplexity, rouge_l, score

GSM8K = ["She has 2+3=<<2+3=5>>5 apples.\n#### 5", "That is $1,000 a year.\n#### 1,000"]


def test_fields_count_only_when_exactly_equal() -> None:
    expected = ['{"a": 1, "b": "x", "c": null}'] * 5
    answers = [
        '{"a": 1, "b": "x", "c": null}',
        '{"a": "1", "b": "X"}',
        "no json",
        "[1]",
        '{"b": "x", "a": true, "c": null}',
    ]
    assert score(expected, answers) == {
        "exact_match": pytest.approx(1 / 5),
        "json_valid": pytest.approx(3 / 5),
        "fields_right": pytest.approx((3 + 0 + 0 + 0 + 2) / 15),
    }


def test_single_words_are_only_matched() -> None:
    assert score(["yes", "no"], ["yes", "No"]) == {"exact_match": 0.5}
    assert score([], []) == {}


def test_the_last_number_is_what_gsm8k_asks_for() -> None:
    found = score(GSM8K, ["I count 3, then 5.", "#### 1000.00"])
    assert found["number_match"] == 1.0
    assert score(GSM8K, ["#### 55", "none at all"])["number_match"] == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### -3", "-3"), ("10-5", "5"), ("$1,234.50.", "1234.5"), ("it is .5", "0.5"), ("1,000, or so", "1000")],
)
def test_numbers_are_read_as_people_write_them(text, number) -> None:
    assert f"{last_number(text).normalize():f}" == number


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (GSM8K, {"exact_match", "number_match", "f1", "rouge_l"}),
        (["1", "2"], {"exact_match", "number_match"}),
        (['{"n": 1}', '{"n": 2}'], {"exact_match", "json_valid", "fields_right"}),
        (["[1, 2]", "3"], {"exact_match", "f1", "rouge_l"}),
        (["no number here", "but 1 here"], {"exact_match", "f1", "rouge_l"}),
        (["spam", "ham"], {"exact_match"}),
        ([], set()),
    ],
)
def test_expected_answers_tell_which_figures_mean_something(expected, names) -> None:
    assert applicable(expected) == names
    assert set(score(expected, expected)) == names
    assert set(score(expected, expected).values()) <= {1.0}


def test_f1_is_squads() -> None:
    assert f1("the Norman conquest!", "Norman  Conquest") == 1.0
    assert f1("Denver Broncos", "the Broncos of Denver won") == pytest.approx(2 * 2 / (2 + 4))
    assert f1("the", "a") == 1.0  # nothing is left of either, which the script of SQuAD 2.0 calls equal
    assert f1("Denver", "") == 0.0


def test_rouge_l_is_that_of_rouge_score() -> None:
    """The first is the example of rouge-score's README; the last are letters that it drops."""
    fox = rouge_l("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")
    assert fox == pytest.approx(0.5882352941176471)
    assert rouge_l("a b c d", "d c b a") == pytest.approx(2 / 8)
    assert rouge_l("a b", "") == 0.0
    assert rouge_l("привет мир", "мир") == pytest.approx(2 / 3)


def test_better_is_lower_for_the_loss_and_higher_for_all_else() -> None:
    nan = float("nan")
    assert better("loss", 1.0, 2.0)
    assert not better("loss", 2.0, 1.0)
    assert better("f1", 0.5, 0.4)
    for metric in ("loss", "exact_match"):
        assert better(metric, 0.5, None)
        assert better(metric, 0.5, nan)
        for new in (0.5, None, nan):
            assert not better(metric, new, 0.5)


def test_perplexity_stays_a_number() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) < float("inf")
