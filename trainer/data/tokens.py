"""Rows into tokens and labels: only the assistant's answers and the token that stops them are trained."""

from __future__ import annotations

import multiprocessing
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.shape import Message, Row
from autoft.trainer.loss import IGNORED

CHUNK_CHARACTERS = 2_000_000  # rendered at once: 500,000 tokens or so, which the tokenizer holds in some 100 MB
CHUNK_ROWS = 1000
_threads_of: int | None = None  # the process that has shared a batch among cores
NO_TEXT = "\ue000"  # a character for private use, with which no answer ends


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: input_ids and labels of equal length; labels are IGNORED where nothing is trained.

    `tokenize` gives arrays of four bytes a number; any sequence will do.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def trained_tokens(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Examples that fit, and the rows (by where) that were left out because they are longer than the context."""

    examples: list[Example]
    too_long: list[str]


def tokenize(rows: Iterable[Row], tokenizer: Any, *, max_tokens: int | None = None) -> Tokenized:
    """Token sequences of `rows` under the tokenizer's chat template.

    A conversation longer than max_tokens is left out, since cutting it would cut its answer; a text is cut in pieces.
    Rows are taken a chunk at a time: of them all only the examples are held, 8 bytes a token.
    Raises: DataError when a row trains nothing or its answers do not end with a stop token, or no row fits.
    """
    examples: list[Example] = []
    too_long: list[str] = []
    shortest: int | None = None
    first, count = "", 0
    encoder = _Encoder(tokenizer)
    for chunk in _chunks(rows):
        first, count = first or chunk[0].where, count + len(chunk)
        for row, pieces in zip(chunk, encoder.examples(chunk, max_tokens), strict=True):
            longest = max(len(piece.input_ids) for piece in pieces)
            shortest = longest if shortest is None else min(shortest, longest)
            if max_tokens is not None and longest > max_tokens:
                too_long.append(row.where)
                continue
            trained = [piece for piece in pieces if piece.trained_tokens]
            if not trained:
                raise DataError(
                    f"{row.where}: no token of this row would be trained", fix="give it an answer, or remove the row"
                )
            examples.extend(trained)
    if not examples:
        raise DataError(
            f"all {count} rows from {first} on are longer than {max_tokens} tokens: {shortest} or more",
            fix="shorter rows, or a longer --seq-len; past the model's own context with --set rope_scaling=yarn",
        )
    return Tokenized(examples, too_long)


def refuse_calls(row: Row) -> None:
    """Raises: DataError where a row calls tools or names them, which nothing here renders."""
    if row.tools or any("tool_calls" in message for message in row.messages):
        raise DataError(f"{row.where}: tool calls: autoft does not train them", fix="leave such rows out")


def prompt_ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Tokens of a conversation up to where the assistant's answer begins: what the model is given to answer."""
    return _render(messages, tokenizer, add_generation_prompt=True)


def stop_ids(tokenizer: Any, model_stop_ids: Sequence[int] = ()) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's own, and the one its chat template writes."""
    return sorted({*model_stop_ids, *_stops(tokenizer)})


def model_stop_ids(model: Any) -> list[int]:
    """The stop tokens of a model's own generation settings."""
    stops = model.generation_config.eos_token_id
    return [] if stops is None else stops if isinstance(stops, list) else [stops]


class _Encoder:
    """Makes the examples of a chunk of rows with few calls of a tokenizer, which cost more than all the rest."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = _special_ids(tokenizer)
        self.anchors = _anchors(tokenizer)

    @cached_property
    def stops(self) -> list[str]:
        """The texts of the tokens that end an answer."""
        return [str(self.tokenizer.convert_ids_to_tokens(token)) for token in sorted(_stops(self.tokenizer))]

    def examples(self, rows: Sequence[Row], max_tokens: int | None) -> list[list[Example]]:
        """The examples of each row: one of a conversation, one or more of a text."""
        texts = self._encode([row.text for row in rows if row.text is not None], add_special_tokens=True)
        ended = [not row.goes_on for row in rows if row.text is not None]
        pieces = iter([self._pieces(_ids(text), max_tokens, end) for text, end in zip(texts, ended, strict=True)])
        talks = iter(self._conversations([row for row in rows if row.text is None]))
        return [[next(talks)] if row.text is None else next(pieces) for row in rows]

    def _conversations(self, rows: Sequence[Row]) -> list[Example]:
        rendered = [self._rendered_turns(row) for row in rows]
        whole = self._encode([text for text, _ in rendered])
        found = [_ids(encoding) for encoding in whole]
        # Where an answer begins or ends is where the tokens of the text up to there part from those of the whole.
        # Tokens up to a special token depend on nothing after it, so that only what follows the last is encoded again.
        bounds = [
            [[(end, *self._after_anchor(end, text, encoding, ids)) for end in turn] for turn in turns]
            for (text, turns), encoding, ids in zip(rendered, whole, found, strict=True)
        ]
        ends = list(dict.fromkeys(tail for turns in bounds for turn in turns for _, _, tail in turn))
        tails = dict(zip(ends, map(_ids, self._encode(ends)), strict=True))
        return [
            self._example(row, ids, [[at + _common_prefix(tails[tail], ids, at) for _, at, tail in t] for t in turns])
            for row, ids, turns in zip(rows, found, bounds, strict=True)
        ]

    def _rendered_turns(self, row: Row) -> tuple[str, list[tuple[str, str]]]:
        """The conversation as text, and for each answer the texts up to where it begins and up to where it ends."""
        refuse_calls(row)
        text = _text(row.messages, self.tokenizer, where=row.where)
        turns = []
        for turn, message in enumerate(row.messages, start=1):
            if message["role"] == "assistant" and message.get("train", True):
                start = _text(row.messages[: turn - 1], self.tokenizer, add_generation_prompt=True, where=row.where)
                last = turn == len(row.messages)
                turns.append((start, text if last else self._up_to_end(row, turn, text)))
        return text, turns

    def _up_to_end(self, row: Row, turn: int, text: str) -> str:
        """The text up to the end of an answer that is not the last, its stop token with it.

        Some templates write an earlier answer otherwise than the last: without its thoughts, for instance. Its end is
        then where the whole text is the same again after the answer was changed.
        """
        alone = _text(row.messages[:turn], self.tokenizer, where=row.where)
        if text.startswith(alone):
            return alone
        other = {"role": "assistant", "content": row.messages[turn - 1]["content"] + NO_TEXT}
        changed = _text([*row.messages[: turn - 1], other, *row.messages[turn:]], self.tokenizer, where=row.where)
        end = len(text) - _common_prefix(text[::-1], changed[::-1])
        stop = next((stop for stop in self.stops if text[end:].lstrip().startswith(stop)), None)
        return text[: text.index(stop, end) + len(stop)] if stop else alone

    def _example(self, row: Row, ids: list[int], turns: list[list[int]]) -> Example:
        labels = array("i", [IGNORED]) * len(ids)
        for start, end in turns:
            stop = next((at for at in range(end - 1, start - 1, -1) if ids[at] in self.special), None)
            if stop is None:
                raise DataError(
                    f"{row.where}: the chat template ends an answer without a stop token, so none would be learnt",
                    fix="use the tokenizer of the model's chat version, or one whose template writes its eos token",
                )
            labels[start : stop + 1] = array("i", ids[start : stop + 1])
        return Example(array("i", ids), labels)

    def _pieces(self, ids: list[int], max_tokens: int | None, end: bool) -> list[Example]:
        if end and ids[-1:] != [self.tokenizer.eos_token_id]:
            ids = [*ids, self.tokenizer.eos_token_id]
        size = max_tokens or len(ids)
        pieces = [array("i", ids[at : at + size]) for at in range(0, len(ids), size)]
        # The first token of a sequence has nothing before it to be predicted from
        return [Example(piece, array("i", [IGNORED]) + piece[1:]) for piece in pieces]

    def _after_anchor(self, end: str, text: str, encoding: Any, ids: list[int]) -> tuple[int, str]:
        """(tokens before the last special token of `end`, the text from it on) where `text` begins with `end`.

        Where it does not, or has no such token: (0, all of `end`).
        """
        if end == text:
            return len(ids), ""
        if hasattr(encoding, "char_to_token") and text.startswith(end):
            place, anchor = max(((end.rfind(content), token) for content, token in self.anchors), default=(-1, 0))
            at = encoding.char_to_token(place) if place >= 0 else None
            if at is not None and ids[at] == anchor:
                return at, end[place:]
        return 0, end

    def _encode(self, texts: list[str], *, add_special_tokens: bool = False) -> list[Any]:
        if not texts:
            return []
        with _all_cores():
            batch = self.tokenizer(
                texts,
                add_special_tokens=add_special_tokens,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        return list(batch.encodings or batch["input_ids"])


def _text(
    messages: Sequence[Message], tokenizer: Any, *, add_generation_prompt: bool = False, where: str | None = None
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except Exception as error:  # jinja raises what the template's author wrote
        roles = ", ".join(m["role"] for m in messages)
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{where + ': ' if where else ''}the model's chat template refuses the roles {roles}: {reason}",
            fix="change the turns' roles or order",
        ) from error


def _render(messages: Sequence[Message], tokenizer: Any, *, add_generation_prompt: bool = False) -> list[int]:
    text = _text(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _stops(tokenizer: Any) -> set[int]:
    """The eos token, and the last special token of a conversation."""
    ids = _render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    special = _special_ids(tokenizer)
    return {tokenizer.eos_token_id, next((token for token in reversed(ids) if token in special), None)} - {None}


def _special_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)


def _anchors(tokenizer: Any) -> list[tuple[str, int]]:
    """(text, id) of the special tokens that the chat template writes and that the tokenizer splits a text at.

    Not those that it looks for in normalized text, or only between words: what is before them matters.
    """
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    try:
        ids = _render([user, assistant, user], tokenizer, add_generation_prompt=True)
    except DataError:
        return []
    known = tokenizer.added_tokens_decoder
    written = [(known[token], token) for token in dict.fromkeys(ids) if token in known]
    return [(str(t), token) for t, token in written if not t.normalized and not t.single_word]


def _ids(encoding: Any) -> list[int]:
    """Of what a fast tokenizer gives, or a slow one."""
    return encoding if isinstance(encoding, list) else list(encoding.ids)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text) if row.text is not None else sum(len(m["content"]) for m in row.messages)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizer share a batch among cores. Off again at once: it would warn in every process that is forked.

    In a forked process not where its threads may have been started before: they are not there, and it would wait.
    """
    global _threads_of
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    started = _threads_of not in (None, os.getpid()) or before != "false"
    alone = started and multiprocessing.parent_process() is not None
    if not alone:
        _threads_of = os.getpid()
    os.environ[name] = "false" if alone else "true"
    try:
        yield
    finally:
        os.environ[name] = before or "false"


def _common_prefix(left: Sequence[Any], right: Sequence[Any], start: int = 0) -> int:
    """How many items of `left` are those of `right` from `start` on."""
    rest = right[start : start + len(left)]
    if rest == left:
        return len(left)
    return next((at for at, (a, b) in enumerate(zip(left, rest, strict=False)) if a != b), len(rest))
