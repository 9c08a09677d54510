"""Rows into tokens and labels: only the assistant's answers and the token that stops them are trained.

That what is trained is the answer is proved for every row: as text (trainer/data/written.py), and here, where the
trained tokens are decoded and compared with it.
"""

from __future__ import annotations

import multiprocessing
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.plain import SPLIT, Pieces, encoded, joined
from autoft.trainer.data.shape import Message, Row, said_in
from autoft.trainer.data.written import Answer, Written, chat_of
from autoft.trainer.objectives.loss import IGNORED

CHUNK_CHARACTERS = 2_000_000  # rendered at once: 500,000 tokens or so, which the tokenizer holds in some 100 MB
CHUNK_ROWS = 1000
UNSPELT = "the tokenizer cannot spell {n} answers exactly: they are trained as it writes them"
_threads_of: int | None = None  # the process that has shared a batch among cores


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
    """Examples that fit, and the rows (by where) that were left out because they are longer than the context.

    facts: what the chat template does with answers, with how many of them and where the first is.
    """

    examples: list[Example]
    too_long: list[str]
    facts: dict[str, tuple[int, str]] = field(default_factory=dict)


def tokenize(
    rows: Iterable[Row], tokenizer: Any, *, max_tokens: int | None = None, stops: Sequence[int] = ()
) -> Tokenized:
    """Token sequences of `rows` under the tokenizer's chat template.

    A conversation longer than max_tokens is left out, since cutting it would cut its answer; a text is cut in pieces.
    stops: the tokens at which the model stops by its own settings, beside the tokenizer's eos token.
    Rows are taken a chunk at a time: of them all only the examples are held, 8 bytes a token.
    Raises: DataError when a row trains nothing, or something else than its answers and their ends, or no row fits.
    """
    examples: list[Example] = []
    too_long: list[str] = []
    shortest: int | None = None
    first, count = "", 0
    facts: dict[str, tuple[int, str]] = {}
    encoder = _Encoder(tokenizer, stops)
    for chunk in _chunks(rows):
        first, count = first or chunk[0].where, count + len(chunk)
        for row, pieces in zip(chunk, encoder.examples(chunk, max_tokens), strict=True):
            longest = max(len(piece.input_ids) for piece in pieces)
            row_facts = encoder.said.pop(row.where, [])
            shortest = longest if shortest is None else min(shortest, longest)
            if max_tokens is not None and longest > max_tokens:
                too_long.append(row.where)
                continue
            for fact in row_facts:
                number, where = facts.get(fact, (0, row.where))
                facts[fact] = number + 1, where
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
    return Tokenized(examples, too_long, facts)


def prompt_ids(messages: Sequence[Message], tokenizer: Any, tools: Sequence[Any] = ()) -> list[int]:
    """Tokens of a conversation up to where the assistant's answer begins: what the model is given to answer."""
    return encoded(chat_of(tokenizer).prompt(messages, tools), tokenizer)


def asked_ids(row: Row, tokenizer: Any, stops: Sequence[int] = ()) -> list[int]:
    """Tokens that ask for the last trained answer of a row."""
    return encoded(chat_of(tokenizer, stops).asked(row), tokenizer)


def stop_ids(tokenizer: Any, model_stop_ids: Sequence[int] = ()) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's own, and the one with which its template ends a turn."""
    return sorted(set(chat_of(tokenizer, model_stop_ids).stops.values()))


def model_stop_ids(model: Any) -> list[int]:
    """The stop tokens of a model's own generation settings."""
    stops = model.generation_config.eos_token_id
    return [] if stops is None else stops if isinstance(stops, list) else [stops]


class _Encoder:
    """Makes the examples of a chunk of rows with few calls of a tokenizer, which cost more than all the rest."""

    def __init__(self, tokenizer: Any, stops: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.model_stops = stops
        self.special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
        self.said: dict[str, list[str]] = {}  # facts of rows, by where

    def examples(self, rows: Sequence[Row], max_tokens: int | None) -> list[list[Example]]:
        """The examples of each row: one of a conversation, one or more of a text."""
        texts = self._encode([row.text for row in rows if row.text is not None], add_special_tokens=True)
        ended = [not row.goes_on for row in rows if row.text is not None]
        pieces = iter([self._pieces(_ids(text), max_tokens, end) for text, end in zip(texts, ended, strict=True)])
        talks = iter(self._conversations([row for row in rows if row.text is None]))
        return [[next(talks)] if row.text is None else next(pieces) for row in rows]

    def _conversations(self, rows: Sequence[Row]) -> list[Example]:
        if not rows:
            return []
        chat = chat_of(self.tokenizer, self.model_stops)
        written = [chat.write(row) for row in rows]
        encodings = self._encode([each.text for each in written])
        for at, (row, each) in enumerate(zip(rows, written, strict=True)):
            if SPLIT in each.text:
                encodings[at] = self._in_pieces(row, each.text)
        examples, spans = [], []
        for row, each, encoding in zip(rows, written, encodings, strict=True):
            if each.facts:
                self.said[row.where] = list(each.facts)
            example, proofs = self._example(row, each, encoding)
            examples.append(example)
            spans += proofs
        self._prove(spans)
        return examples

    def _in_pieces(self, row: Row, text: str) -> Pieces:
        try:
            return Pieces(text, self.tokenizer)
        except DataError as error:
            raise DataError(f"{row.where}: {error.what}", fix=error.fix) from None

    def _example(self, row: Row, written: Written, encoding: Any) -> tuple[Example, list[tuple[str, list[int], str]]]:
        """(the example; for each answer its place, the tokens that are trained but for the stop, and their text)."""
        ids = _ids(encoding)
        labels = array("i", [IGNORED]) * len(ids)
        proofs = []
        for answer in written.answers:
            first = self._token_at(answer.start, written.text, encoding, ids)
            place = answer.end if answer.stop_at is None else answer.stop_at
            last = self._token_at(place, written.text, encoding, ids)
            self._demand_end(row, answer, written.text, encoding, ids, last)
            labels[first:last] = array("i", ids[first:last])
            labels[last] = answer.stop
            begin = answer.start
            if first < last and ids[first] in self.special and hasattr(encoding, "token_to_chars"):
                begin = min(begin, encoding.token_to_chars(first)[0])
            proofs.append((row.where, ids[first:last], joined(written.text[begin:place])))
        return Example(array("i", ids), labels), proofs

    def _demand_end(self, row: Row, answer: Answer, text: str, encoding: Any, ids: list[int], last: int) -> None:
        """Raises: DataError where no token of its own is there for the end of an answer."""
        if answer.stop_at is not None and last < len(ids) and ids[last] == answer.stop:
            return
        if answer.stop_at is None and last < len(ids) and self._begins_at(answer.end, encoding, last):
            return
        stop = self.tokenizer.convert_ids_to_tokens(answer.stop)
        raise DataError(
            f"{row.where}: nothing that the chat template writes after an answer can be trained as its end ({stop})",
            fix="use the tokenizer of the model's chat version, or one whose template writes its eos token",
        )

    def _token_at(self, place: int, text: str, encoding: Any, ids: list[int]) -> int:
        """The token that holds a character of the text, the first after a special one that has swallowed it."""
        if place >= len(text):
            return len(ids)
        if not hasattr(encoding, "char_to_token"):  # a tokenizer without places
            before = self._encode([text[:place]])[0]
            return _common_prefix(_ids(before), ids)
        at = next((at for c in range(place, len(text)) if (at := encoding.char_to_token(c)) is not None), len(ids))
        inside = at < len(ids) and ids[at] in self.special and not self._begins_at(place, encoding, at)
        swallowed = inside and text[place].isspace()
        return at + 1 if swallowed else at

    def _begins_at(self, place: int, encoding: Any, at: int) -> bool:
        return not hasattr(encoding, "offsets") or encoding.token_to_chars(at)[0] >= place

    def _prove(self, spans: Sequence[tuple[str, list[int], str]]) -> None:
        """That the tokens decode to the text. Raises: DataError where they say something else."""
        decoded = self._decode([ids for _, ids, _ in spans])
        for (where, _, text), learnt in zip(spans, decoded, strict=True):
            if learnt == text or learnt.strip() == text.strip():
                continue
            if learnt.endswith(text):  # the tokenizer joins the begin to the end of the prompt
                continue
            again = self._decode([_ids(self._encode([text])[0])])[0]
            if again.strip() != learnt.strip() and not learnt.strip().endswith(again.strip()):
                raise DataError(
                    f"{where}: what would be trained is {learnt[:60]!r}, and its answer is {text[:60]!r}",
                    fix="use the model's own tokenizer files",
                )
            self.said.setdefault(where, []).append(UNSPELT)

    def _decode(self, spans: Sequence[list[int]]) -> list[str]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if hasattr(backend, "decode_batch"):
            with _all_cores():
                return list(backend.decode_batch(list(spans), skip_special_tokens=False))
        return [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in spans]

    def _pieces(self, ids: list[int], max_tokens: int | None, end: bool) -> list[Example]:
        if end and ids[-1:] != [self.tokenizer.eos_token_id]:
            ids = [*ids, self.tokenizer.eos_token_id]
        size = max_tokens or len(ids)
        pieces = [array("i", ids[at : at + size]) for at in range(0, len(ids), size)]
        # The first token of a sequence has nothing before it to be predicted from
        return [Example(piece, array("i", [IGNORED]) + piece[1:]) for piece in pieces]

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


def _ids(encoding: Any) -> list[int]:
    """Of what a fast tokenizer gives, or a slow one."""
    return encoding if isinstance(encoding, list) else list(encoding.ids)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text) if row.text is not None else sum(len(said_in(m)) for m in row.messages)
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
