"""Where new tokens stand in a model's vocabulary, before any of it is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.new_tokens import first_new_id
from autoft.trainer.sources.resolve import ModelRef

NAMES = ("new_tokens", "first_new_id")


def with_token_ids(pins: dict[str, Any], ref: ModelRef) -> dict[str, Any]:
    """Fields of the Recipe that are set, with the id that the model's tokenizer gives the first of the new tokens.

    Raises: OptionError for a word that is one token already; ModelError where the model has no tokenizer here.
    """
    words = tuple(pins.get("new_tokens") or ())
    return {**pins, "first_new_id": first_new_id(ref, words)} if words else pins


def vocabulary(pins: Mapping[str, Any], rows: int) -> int:
    """Rows that the model's embedding of `rows` has with the new tokens of these fields of the Recipe."""
    return Recipe(**{name: pins[name] for name in NAMES if name in pins}).vocabulary(rows)
