"""From a model and data to what is trained: tokenizer, rows, tokens. The gates that refuse bad data are here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autoft.errors import DataError, ModelError
from autoft.trainer.data.fit import fit
from autoft.trainer.data.load import Splits, load_data
from autoft.trainer.data.template_gate import check_template
from autoft.trainer.data.templates import PLAIN, supply_template
from autoft.trainer.data.tokens import Example, Tokenized, tokenize
from autoft.trainer.job import Thinking
from autoft.trainer.sources.new_tokens import add_tokens
from autoft.trainer.sources.resolve import ModelRef, load_stops, load_tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data ready for a model.

    template: the name of the chat template that a tokenizer without one was given. stops: the tokens at which the model
    stops. thinking: what was done to the template's thinking, a sentence each.
    """

    splits: Splits
    tokenizer: Any
    train: Tokenized
    heldout: list[Example]
    template: str | None
    stops: tuple[int, ...] = ()
    thinking: tuple[str, ...] = ()

    @property
    def template_supplied(self) -> bool:
        return self.template is not None

    @property
    def longest_tokens(self) -> int:
        return max(len(e.input_ids) for e in [*self.train.examples, *self.heldout])

    def places(self, examples: Sequence[int], max_tokens: int | None = None) -> list[str]:
        """Where the rows are that these of train.examples were made of; the data are read anew for it."""
        wanted, place_of, at = set(examples), dict[int, str](), 0
        for row in self.splits.train:
            if len(place_of) == len(wanted):
                break
            with suppress(DataError):  # rows that are left out give no example
                for _ in tokenize([row], self.tokenizer, max_tokens=max_tokens, stops=self.stops).examples:
                    if at in wanted:
                        place_of[at] = row.where
                    at += 1
        return [place_of.get(example, f"example {example + 1}") for example in examples]

    def notes(self, seq_len: int) -> list[str]:
        """What the user should know of this data, a sentence each. seq_len: the limit it was tokenized with."""
        notes = list(self.splits.notes)
        left_out = self.train.too_long
        if left_out:
            notes.append(
                f"{len(left_out)} rows are longer than {seq_len} tokens and are left out, the first at {left_out[0]}"
            )
        if self.template is not None:
            which = "a plain one (### User / ### Assistant)" if self.template == PLAIN else f"that of {self.template}"
            notes.append(f"the tokenizer has no chat template: {which} is used and saved with it")
        notes += self.thinking
        notes += [
            fact.format(n=f"{count:,}") + f" (the first at {where})"
            for fact, (count, where) in self.train.facts.items()
        ]
        if not self.heldout:
            notes.append("too few rows to hold any out: there is no evaluation")
        return notes


def prepare(
    ref: ModelRef,
    data: str,
    eval_data: str | None = None,
    *,
    eval_rows: int = 100,
    max_tokens: int | None = None,
    mapping: str | None = None,
    thinking: Thinking = "auto",
    new_tokens: tuple[str, ...] = (),
    ready: tuple[Any, str | None] | None = None,
    stops: tuple[int, ...] | None = None,
) -> Prepared:
    """Load, recognise and tokenize. max_tokens: longer rows are left out (None: none are). mapping: as --map words it.

    thinking: whether the chat template is to think; the tokenizer's template keeps the choice.
    new_tokens: words that the tokenizer is given as tokens.
    ready: what ready_tokenizer gives, where the caller has it. stops: where they are not the model's.
    Raises: DataError, ModelError, OptionError.
    """
    splits = load_data(data, eval_data, eval_rows=eval_rows, mapping=mapping)
    tokenizer, template = ready or ready_tokenizer(ref, new_tokens)
    stops = tuple(load_stops(ref)) if stops is None else stops
    notes = fit(tokenizer, splits.train, stops=stops, thinking=thinking, model=ref.name)
    train = tokenize(splits.train, tokenizer, max_tokens=max_tokens, stops=stops)
    try:
        held = (
            tokenize(splits.heldout, tokenizer, max_tokens=max_tokens, stops=stops).examples if splits.heldout else []
        )
    except DataError as error:
        raise DataError(f"held-out rows: {error.what}", fix=error.fix) from None
    return Prepared(splits, tokenizer, train, held, template, stops, tuple(notes))


def ready_tokenizer(ref: ModelRef, new_tokens: tuple[str, ...] = ()) -> tuple[Any, str | None]:
    """(the model's tokenizer, with new tokens, a pad token and a chat template; the name of the template it was given).

    Raises: ModelError; OptionError for a new token that it has.
    """
    tokenizer = load_tokenizer(ref)
    if tokenizer is None:
        raise ModelError(
            f"{ref.name}: no tokenizer there, so the data cannot be read with it",
            fix="add its tokenizer.json, or plan without --data",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{ref.name}: its tokenizer has no eos token, so no answer could ever stop",
            fix="set eos_token in its tokenizer_config.json",
        )
    if new_tokens:
        add_tokens(tokenizer, new_tokens, ref.name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_template(tokenizer, ref.name)
    return tokenizer, supply_template(tokenizer)
