"""A chat template made ready for data, before any of it is trained: thinking switched, prompts as they are trained.

`autoft data check`, `plan` and `run` come through here alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from autoft.errors import DataError, ModelError
from autoft.trainer.data.shape import Row
from autoft.trainer.data.thinking import settle
from autoft.trainer.data.tokens import Example, asked_ids, tokenize
from autoft.trainer.data.written import chat_of
from autoft.trainer.job import Thinking
from autoft.trainer.objectives.loss import IGNORED

OTHER_PROMPT = "training and inference prompts would not match"
SEEN_ROWS = 1000  # among which thoughts are looked for
SAMPLED_ROWS = 32  # whose prompts are tokenized again


def fit(
    tokenizer: Any, rows: Iterable[Row], *, stops: Sequence[int] = (), thinking: Thinking = "auto", model: str
) -> list[str]:
    """Switch the template's thinking as `rows` need it; what the user should know of it, a sentence each.

    rows: the first SEEN_ROWS are looked at. stops: tokens at which the model stops. model: its name, for errors.
    Raises: ModelError where the template has no such switch, or where most of the first SAMPLED_ROWS conversations are
    asked for with other tokens than they are trained with.
    """
    sample = list(islice(rows, SEEN_ROWS))
    notes = settle(tokenizer, sample, thinking, model, keeps=lambda: chat_of(tokenizer, stops).writes_thoughts)
    seen, others = 0, []
    for row in islice((row for row in sample if row.messages), SAMPLED_ROWS):
        with suppress(DataError):  # told by whoever tokenizes all
            (example,) = tokenize([row], tokenizer, stops=stops).examples
            seen += 1
            if not is_prompt_of(asked_ids(row, tokenizer, stops), example, follows_answer=follows_answer(row)):
                others.append(row)
    if 2 * len(others) > seen:  # single answers may begin with what the tokenizer joins to the prompt
        raise ModelError(
            f"{model}: the chat template's prompt ends in another token once an answer follows "
            f"({len(others)} of {seen} rows, first {others[0].where}): {OTHER_PROMPT}",
            fix="change chat_template.jinja beside the model: no space or line break where its generation prompt ends",
        )
    return notes


def is_prompt_of(prompt: Sequence[int], example: Example, *, follows_answer: bool) -> bool:
    """Whether an example begins with these tokens and its last answer comes next."""
    end, labels = len(prompt), example.labels
    return (
        list(example.input_ids[:end]) == list(prompt)
        and any(label != IGNORED for label in labels[end : end + 1])
        and (follows_answer or all(label == IGNORED for label in labels[max(0, end - 1) : end]))
    )


def follows_answer(row: Row) -> bool:
    """Whether the turn before the last is an answer too."""
    return len(row.messages) > 1 and row.messages[-2]["role"] == "assistant"
