"""Control tokens that stand in people's texts, encoded as the characters that they are.

A tokenizer reads "<|im_end|>" as its control token wherever it stands: a row's text could end its own turn and begin
another's. So each one in a row's texts is split by a mark before the chat template writes it, and the tokenizer gets
the text on both sides of the mark apart. transformers 5.23 does the same (chat_template_utils.py, encode_marked_chat),
but gives no places of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from autoft.errors import DataError

SPLIT = "\ue002\ue003"
BEFORE = "\n"  # in front of a later piece: SentencePiece puts a space before the first character that it gets


def special_texts(tokenizer: Any) -> set[str]:
    """The texts that the tokenizer reads as its control tokens."""
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds these tokens in a text; one of a single character cannot be split."""
    known = sorted((text for text in tokens if len(text.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known)) or "(?!)")


def split_control(value: Any, control: re.Pattern[str]) -> Any:
    """A text, or lists and dicts of them, with each control token split by a mark."""
    if isinstance(value, str):
        return control.sub(lambda found: f"{found[0][0]}{SPLIT}{found[0][1:]}", value)
    if isinstance(value, dict):
        return {key: split_control(each, control) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [split_control(each, control) for each in value]
    return value


def joined(text: str) -> str:
    """The text without the marks."""
    return text.replace(SPLIT, "")


def encoded(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that the chat template has written."""
    ids: list[int] = (
        Pieces(text, tokenizer).ids if SPLIT in text else tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    return ids


class Pieces:
    """The encoding of a text with marks, as `tokenizers.Encoding` has it; places count the marks too."""

    def __init__(self, text: str, tokenizer: Any) -> None:
        self.ids: list[int] = []
        self.offsets: list[tuple[int, int]] = []
        lead = _encode(tokenizer, BEFORE).ids
        place = 0
        for number, piece in enumerate(text.split(SPLIT)):
            encoding = _encode(tokenizer, piece if number == 0 else BEFORE + piece)
            skipped = 0 if number == 0 else len(lead)
            if number and encoding.ids[:skipped] != lead:
                raise DataError(
                    f"the tokenizer cannot spell {text[max(0, place - 20) : place + 20]!r} without its control token",
                    fix="remove it from the text",
                )
            shift = place - (len(BEFORE) if number else 0)
            self.ids += encoding.ids[skipped:]
            self.offsets += [(begin + shift, end + shift) for begin, end in encoding.offsets[skipped:]]
            place += len(piece) + len(SPLIT)

    def char_to_token(self, char: int) -> int | None:
        return next((at for at, (begin, end) in enumerate(self.offsets) if begin <= char < end), None)

    def token_to_chars(self, token: int) -> tuple[int, int]:
        return self.offsets[token]


def _encode(tokenizer: Any, text: str) -> Any:
    encodings = tokenizer([text], add_special_tokens=False).encodings
    if not encodings:
        raise DataError(
            "the texts hold control tokens, which this tokenizer cannot tell from its own",
            fix="remove them, or use the model's tokenizer.json",
        )
    return encodings[0]
