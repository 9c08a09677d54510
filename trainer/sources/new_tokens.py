"""Words that become tokens: added to a model's tokenizer, and what each was before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoft.errors import ModelError, OptionError
from autoft.trainer.sources.resolve import ModelRef, load_tokenizer


def add_tokens(tokenizer: Any, words: Sequence[str], model: str) -> int:
    """Add the words to the tokenizer of `model`, and return the id of the first; the others follow it.

    They are ordinary tokens, not special ones: decoding shows them, as a parser of tool calls needs.
    Raises: OptionError for a word that is one token already; ModelError where ids do not follow each other.
    """
    from tokenizers import AddedToken

    for word in words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) != tokenizer.unk_token:
            raise OptionError(
                f"new_tokens: {word!r} is one token of {model} already (id {ids[0]}): it has a row of its own",
                fix="leave it out",
            )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    ids = tokenizer.convert_tokens_to_ids(list(words))
    if ids != list(range(ids[0], ids[0] + len(words))):
        raise ModelError(f"{model}: its tokenizer numbers new tokens {ids}, not in a row", fix="leave new_tokens out")
    return int(ids[0])


def first_new_id(ref: ModelRef, words: Sequence[str]) -> int:
    """The id that the model's tokenizer gives the first of the words.

    Raises: OptionError as add_tokens does; ModelError where the model has no tokenizer here.
    """
    return add_tokens(_tokenizer_of(ref), words, ref.name)


def pieces_of(ref: ModelRef, words: Sequence[str]) -> list[list[int]]:
    """Of each word, the ids that the model's own tokenizer has for it. Raises: ModelError as first_new_id does."""
    if not words:
        return []
    tokenizer = _tokenizer_of(ref)
    return [tokenizer.encode(word, add_special_tokens=False) for word in words]


def _tokenizer_of(ref: ModelRef) -> Any:
    tokenizer = load_tokenizer(ref)
    if tokenizer is None:
        raise ModelError(
            f"{ref.name}: no tokenizer there, so new_tokens cannot be added to it", fix="add its tokenizer.json"
        )
    return tokenizer
