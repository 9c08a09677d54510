"""Evaluation: scores by exact comparison, and greedy answers that do not depend on their batch."""

from __future__ import annotations

import pytest

from autoft.trainer.data.tokens import Example
from autoft.trainer.evaluate import generate, mean_loss, score
from autoft.trainer.loss import IGNORED, compute_loss
from tests.conftest import make_tokenizer
from tests.trainer.test_step import FP32, build


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


def test_text_answers_are_only_matched() -> None:
    assert score(["yes", "no"], ["yes", "No"]) == {"exact_match": 0.5}
    assert score([], []) == {}


def test_an_answer_does_not_depend_on_its_batch(tiny_model) -> None:
    tokenizer = make_tokenizer()
    _, model = build(tiny_model, **FP32)
    prompts = [list(range(5, 5 + n)) for n in (3, 30, 11, 7)]
    settings = {"max_new_tokens": 12, "stop": [tokenizer.eos_token_id]}
    together = generate(model, tokenizer, prompts, batch=3, **settings)
    alone = [generate(model, tokenizer, [prompt], batch=1, **settings)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1
    assert model.training


def test_the_loss_counts_every_token_once_whatever_its_batch(tiny_model) -> None:
    import torch

    recipe, model = build(tiny_model, **FP32)
    examples = [Example(list(range(3, 3 + n)), [IGNORED, *range(4, 3 + n)]) for n in (4, 9, 17)]
    one_by_one = 0.0
    for example in examples:
        batch = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.labels])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        one_by_one += compute_loss(model, batch, recipe).item() * (len(example.labels) - 1)
    assert mean_loss(model, make_tokenizer(), examples, recipe) == pytest.approx(one_by_one / (3 + 8 + 16), rel=1e-5)
