"""How good answers are beside the expected ones, and which of two evaluations is better.

Which figures there are is told by the expected answers: fields where all are JSON objects, the last number where all
end with one, words where some has more than one.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from autoft.trainer.job import Metric

LARGEST_EXPONENT = 700.0  # e to it is still a float
NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
WORD = re.compile(r"\w+")
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


Part = tuple[float, float]  # what a row adds to a figure, and its weight: the figure is the sum of one over the other
Parts = dict[str, list[Part]]  # by figure, a Part a row


def row_scores(expected: Sequence[str], answers: Sequence[str]) -> Parts:
    """Every figure that `applicable` names, of each answer. Empty without answers."""
    if not answers:
        return {}
    pairs = list(zip(expected, answers, strict=True))
    names = applicable(expected)
    scores = {"exact_match": [_whole(want.strip() == got.strip()) for want, got in pairs]}
    if "fields_right" in names:
        scores["json_valid"] = [_whole(_json_object(got) is not None) for _, got in pairs]
        fields = [_fields(want, got) for want, got in pairs]
        scores["fields_right"] = [(float(sum(of_row)), float(len(of_row))) for of_row in fields]
    if "number_match" in names:
        scores["number_match"] = [_whole(last_number(want) == last_number(got)) for want, got in pairs]
    if "f1" in names:
        scores["f1"] = [_whole(f1(want, got)) for want, got in pairs]
        scores["rouge_l"] = [_whole(rouge_l(want, got)) for want, got in pairs]
    return scores


def mean_of(parts: Sequence[Part]) -> float:
    """The figure of all rows together."""
    return sum(value for value, _ in parts) / sum(weight for _, weight in parts)


def score(expected: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Every figure that `applicable` names, the mean over all answers, by its field. Empty without answers."""
    return {name: mean_of(parts) for name, parts in row_scores(expected, answers).items()}


def applicable(expected: Sequence[str]) -> frozenset[Metric]:
    """The figures of answers that mean something where these are expected."""
    metrics: set[Metric] = {"exact_match"} if expected else set()
    objects = [_json_object(want) for want in expected]
    if expected and all(want is not None for want in objects):
        metrics |= {"json_valid", "fields_right"} if any(objects) else {"json_valid"}
        return frozenset(metrics)
    if expected and all(_json(want) is None and last_number(want) is not None for want in expected):
        metrics.add("number_match")
    if any(len(want.split()) > 1 for want in expected):
        metrics |= {"f1", "rouge_l"}
    return frozenset(metrics)


def right(expected: str, answer: str) -> bool:
    """Whether an answer is as good as the expected one: its text, its JSON object, or its last number after ####."""
    want, got = _json_object(expected), _json_object(answer)
    if want is not None:
        return _same(want, got)
    if "####" in expected:
        return last_number(expected) == last_number(answer)
    return expected.strip() == answer.strip()


def better(metric: Metric, new: float | None, best: float | None) -> bool:
    """Whether `new` beats `best`: a lower loss, a higher anything else. None and what is no number beat nothing."""
    if new is None or math.isnan(new):
        return False
    if best is None or math.isnan(best):
        return True
    return new < best if metric == "loss" else new > best


def perplexity(loss: float) -> float:
    """e to the loss, and the largest that is still a number where that is none."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without the commas of its thousands; GSM8K writes its answers as `#### 1,234`."""
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def f1(expected: str, answer: str) -> float:
    """Harmonic mean of the shares of words in common, case, punctuation and English articles aside.

    Source: SQuAD (arXiv:1606.05250) and its evaluation script, version 2.0.
    """
    want, got = ([*_squad_words(text)] for text in (expected, answer))
    if not want or not got:
        return float(want == got)
    return _harmonic(sum((Counter(want) & Counter(got)).values()), len(want), len(got))


def rouge_l(expected: str, answer: str) -> float:
    """F1 of the longest common subsequence of words: as F1, but they count in one order only. No stemming.

    Words are those of any script; rouge-score, which knows a to z and digits alone, agrees where there are no others.
    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    want, got = (WORD.findall(text.lower()) for text in (expected, answer))
    if not want or not got:
        return 0.0
    return _harmonic(_common_subsequence(want, got), len(want), len(got))


def _harmonic(common: int, *lengths: int) -> float:
    return 2 * common / sum(lengths)


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one number.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for at, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << at
    row = full = (1 << len(left)) - 1
    for word in right:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(left) - row.bit_count()


def _squad_words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _fields(expected: str, answer: str) -> list[bool]:
    """Of each expected field, whether the answer has exactly its value."""
    want, got = _json_object(expected) or {}, _json_object(answer) or {}
    return [key in got and _same(got[key], value) for key, value in want.items()]


def _json_object(text: str) -> dict[str, Any] | None:
    value = _json(text)
    return value if isinstance(value, dict) else None


def _json(text: str) -> Any:
    """The object or list that a text is in JSON; None for all else, bare numbers and strings too."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def _whole(value: float) -> Part:
    return float(value), 1.0
