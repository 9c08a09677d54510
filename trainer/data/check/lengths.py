"""How long rows are: in tokens of a model, or estimated, and in characters and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoft.errors import DataError, ModelError
from autoft.trainer.data.check.report import Bin, Lengths, Limit, Place, Spread
from autoft.trainer.data.check.tally import Places
from autoft.trainer.data.shape import Row, said_in
from autoft.trainer.job import Thinking

PERCENTILES = (5, 25, 50, 75, 95, 99)
FIRST_LIMIT = 256
LONGEST_SHOWN = 5
BINS = 10
# Without a tokenizer. Measured with SmolLM2's (49,152 tokens): 2.5 bytes a token on GSM8K, 3.2 on the bundled task,
# 5.1 on the Apache licence
BYTES_A_TOKEN = 3.2
TOKENS_A_TURN = 5

Array = np.ndarray


@dataclass(slots=True)
class Meter:
    """A model's tokenizer and its longest sequence.

    template: the name of the chat template that it was given if it had none. stops: tokens at which the model stops.
    notes: what the template does with answers, as a run says it; facts: the same with counts. thinking: a Job's.
    """

    model: str
    tokenizer: Any
    context: int | None
    template: str | None
    stops: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    facts: dict[str, tuple[int, str]] = field(default_factory=dict)
    fitted: bool = False
    thinking: Thinking = "auto"

    def fit(self, rows: Sequence[Row]) -> None:
        """Make the template ready for these rows, as a run does, once. Raises: ModelError."""
        from autoft.trainer.data.fit import fit

        if self.fitted:
            return
        self.fitted = True
        notes = fit(self.tokenizer, rows, stops=self.stops, thinking=self.thinking, model=self.model)
        self.notes.extend(notes)

    def measure(self, rows: Sequence[Row]) -> list[tuple[int, int] | DataError]:
        """(tokens, trained tokens) of each row, or why it cannot be trained."""
        from autoft.trainer.data.tokens import tokenize

        try:
            tokenized = tokenize(rows, self.tokenizer, stops=self.stops)
        except DataError as error:
            if len(rows) == 1:
                return [error]
            half = len(rows) // 2
            return [*self.measure(rows[:half]), *self.measure(rows[half:])]
        for fact, (count, where) in tokenized.facts.items():
            known, first = self.facts.get(fact, (0, where))
            self.facts[fact] = known + count, first
        return [(len(example.input_ids), example.trained_tokens) for example in tokenized.examples]


def meter_of(model: str, thinking: Thinking = "auto") -> Meter:
    """Raises: ModelError where there is no such model, or no tokenizer that can stop."""
    from autoft.trainer.data.template_gate import check_template
    from autoft.trainer.data.templates import supply_template
    from autoft.trainer.sources.resolve import load_config, load_stops, load_tokenizer, resolve

    ref = resolve(model)
    tokenizer = load_tokenizer(ref)
    if tokenizer is None or tokenizer.eos_token_id is None:
        lacks = "tokenizer" if tokenizer is None else "eos token"
        raise ModelError(
            f"{model}: has no {lacks}, so its tokens cannot be counted",
            fix="add its tokenizer files, or check without --model",
        )
    context = getattr(load_config(ref).get_text_config(), "max_position_embeddings", None)
    check_template(tokenizer, model)
    return Meter(model, tokenizer, context, supply_template(tokenizer), tuple(load_stops(ref)), thinking=thinking)


def estimated_tokens(row: Row) -> int:
    """A guess from the bytes of a row: BYTES_A_TOKEN and TOKENS_A_TURN, off by a third either way."""
    texts = [row.text] if row.text is not None else [said_in(message) for message in row.messages]
    num_bytes = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
    return round(num_bytes / BYTES_A_TOKEN) + TOKENS_A_TURN * len(texts)


def lengths_of(
    tokens: Array, characters: Array, words: Array, trained_share: float, places: Places, meter: Meter | None
) -> Lengths:
    """tokens, characters, words: uint32 [rows], in the rows' order; not empty."""
    order = np.argsort(-tokens.astype(np.int64), kind="stable")[:LONGEST_SHOWN]
    context = meter.context if meter else None
    return Lengths(
        estimated=meter is None,
        tokens=_spread("tokens", tokens),
        characters=_spread("characters", characters),
        words=_spread("words", words),
        trained_share=trained_share,
        histogram=_histogram(tokens),
        longest=tuple(Place(where=places[int(row)], length=int(tokens[row])) for row in order),
        truncated=_truncated(tokens, context),
        context=context,
    )


def _spread(unit: str, lengths: Array) -> Spread:
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return Spread(
        unit=unit,
        total=int(lengths.sum(dtype=np.int64)),
        mean=round(float(lengths.mean()), 1),
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        percentiles={str(percent): int(value) for percent, value in zip(PERCENTILES, values, strict=True)},
    )


def _histogram(lengths: Array) -> tuple[Bin, ...]:
    """Bins of one round width up to the 99th percentile; the last one holds all that is longer."""
    most = int(np.percentile(lengths, 99, method="inverted_cdf"))
    least = int(lengths.min())
    width = _round_up(max(1, (most - least) // BINS + 1))
    first = least // width * width
    edges = [*range(first, most + 1, width), int(lengths.max()) + 1]
    counts, _ = np.histogram(lengths, bins=edges) if len(edges) > 1 else ([len(lengths)], None)
    return tuple(
        Bin(start=start, end=end, rows=int(rows)) for start, end, rows in zip(edges, edges[1:], counts, strict=False)
    )


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size = 1
    while True:
        for step in (1, 2, 5):
            if step * size >= width:
                return step * size
        size *= 10


def _truncated(tokens: Array, context: int | None) -> tuple[Limit, ...]:
    """At 256, 512, ... until no row is longer, and at the model's context."""
    longest = int(tokens.max())
    limits = [FIRST_LIMIT]
    while limits[-1] < longest and limits[-1] * 2 <= (context or longest * 2):
        limits.append(limits[-1] * 2)
    if context is not None:
        limits = sorted({limit for limit in limits if limit <= context} | {context})
    return tuple(Limit(tokens=limit, rows=int((tokens > limit).sum())) for limit in limits)
