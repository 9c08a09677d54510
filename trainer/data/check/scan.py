"""One split, read once: counts, first places, and a few hundred bytes of every row."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from autoft.errors import DataError
from autoft.trainer.data.check import secrets, text, turns
from autoft.trainer.data.check.duplicates import Finished, Sketches, key_of, normalised, words_of
from autoft.trainer.data.check.language import language_of
from autoft.trainer.data.check.lengths import Meter, estimated_tokens
from autoft.trainer.data.check.tally import Faults, Places, Tally, place_of
from autoft.trainer.data.mapping import Mapping
from autoft.trainer.data.read import Start
from autoft.trainer.data.shape import Row, said_in, shape_of

# Rows are taken so many at a time, or fewer when they are long, so that memory stays bounded
BATCH_ROWS, BATCH_CHARACTERS = 2048, 2_000_000
EXAMPLE_CHARACTERS = 1200  # a rendered example of up to so many is liked best

Progress = Callable[[int], None]


class Verdict(IntEnum):
    """Whether a cleaned copy keeps a row, and why not."""

    KEPT = 0
    BROKEN = 1
    UNTRAINABLE = 2
    OTHER_SHAPE = 3
    SECRET = 4
    IN_EVAL = 5
    COPY = 6
    LEFT_OUT = 7


class Scan:
    """All that is kept of a split.

    verdicts: one for every row that could be read. raw: for every row with a shape (a "good" row), its place among
    these. What follows has one entry for every good row: shape, keys (64-bit hashes of what a row says), prompts (of
    what comes before its last answer), characters, words, tokens, trained.
    """

    def __init__(
        self,
        source: Start,
        meter: Meter | None = None,
        mapping: Mapping | None = None,
        common: np.ndarray | None = None,
    ) -> None:
        self.source = source
        self.mapping = mapping
        self.meter = meter
        self.unread = 0
        self.verdicts = bytearray()
        self.faults = Faults()
        self.turns, self.text, self.secrets, self.personal = Tally(), Tally(), Tally(), Tally()
        self.remarks, self.unused, self.left_out = Tally(), Tally(), Tally()
        self.languages: Counter[str] = Counter()
        self.places = Places()
        self.raw, self.shape = array("I"), array("B")
        self.shapes: list[str] = []
        self.keys, self.prompts = array("Q"), array("Q")
        self.characters, self.words = array("I"), array("I")
        self.tokens, self.trained = array("I"), array("I")
        self.examples: dict[str, Row] = {}
        self.facts: dict[str, tuple[int, str]] = {}  # of answers under the chat template, as Tokenized has them
        self.sketches = Sketches(common)

    @property
    def rows(self) -> int:
        """Every row of the file."""
        return self.unread + len(self.verdicts)

    @property
    def shaped_rows(self) -> int:
        """Every row but those that are left out for what the data says of them."""
        return self.rows - self.verdicts.count(Verdict.LEFT_OUT)

    @property
    def format(self) -> str | None:
        """The shape of most good rows."""
        return max(self.formats, key=self.formats.__getitem__, default=None)

    @property
    def formats(self) -> dict[str, int]:
        counts = Counter(self.shape)
        return {name: counts[number] for number, name in enumerate(self.shapes)}

    def read(self, progress: Progress = lambda _: None) -> Scan:
        """Read the whole split. Raises: DataError where there is nothing to read."""
        batch: list[Row] = []
        characters = 0
        for raw in self.source(on_fault=self._unread):
            self.verdicts.append(Verdict.KEPT)
            try:
                name, convert = shape_of(raw, self.mapping)
                row = convert(raw)
            except DataError as error:
                self.faults.add(raw.where, error.what.removeprefix(f"{raw.where}: "), error.fix)
                self.verdicts[-1] = Verdict.BROKEN
                continue
            if row.left_out is not None:
                self.left_out.add(row.left_out, raw.where)
                self.verdicts[-1] = Verdict.LEFT_OUT
                continue
            batch.append(row)
            self.raw.append(len(self.verdicts) - 1)
            self.places.add(raw.where)
            self.shape.append(self._number_of(name))
            characters += _characters(batch[-1])
            if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
                self._take(batch)
                batch, characters = [], 0
                progress(self.rows)
        self._take(batch)
        progress(self.rows)
        if self.meter is not None:
            self.facts = dict(self.meter.facts)
            self.meter.facts.clear()
        return self

    def finish_sketches(self) -> Finished:
        return self.sketches.finish()

    def _unread(self, error: DataError) -> None:
        self.unread += 1
        self.faults.add(*place_of(error), error.fix)

    def _number_of(self, shape: str) -> int:
        if shape not in self.shapes:
            self.shapes.append(shape)
        return self.shapes.index(shape)

    def _take(self, rows: list[Row]) -> None:
        if not rows:
            return
        first = len(self.keys)
        self.sketches.add([self._look(row, first + number) for number, row in enumerate(rows)])
        if self.meter is None:
            self.tokens.extend(map(estimated_tokens, rows))
            return
        self.meter.fit(rows)
        for number, (row, measured) in enumerate(zip(rows, self.meter.measure(rows), strict=True), start=first):
            if isinstance(measured, DataError):
                self.faults.add(row.where, measured.what.removeprefix(f"{row.where}: "), measured.fix)
                self.verdicts[self.raw[number]] = Verdict.UNTRAINABLE
                measured = (0, 0)
            self.tokens.append(measured[0])
            self.trained.append(measured[1])

    def _look(self, row: Row, number: int) -> list[str]:
        """Note what one row is; its words, without the system turn, for the sketches."""
        where = row.where
        for remark in row.remarks:
            self.remarks.add(remark, where)
        for name in row.unused:
            self.unused.add(name, where)
        if row.text is not None:
            contents, trained = [row.text], len(row.text)
            prompt: list[str] = []
        else:
            contents = [said_in(message) for message in row.messages]
            answers = (m["role"] == "assistant" and m.get("train", True) for m in row.messages)
            trained = sum(len(content) for content, answer in zip(contents, answers, strict=True) if answer)
            for kind in turns.troubles(row.messages):
                self.turns.add(kind, where)
        whole = "\n".join(contents)
        marks = text.troubles(whole)
        for kind in marks:
            self.text.add(kind, where)
        seen = text.visible(whole) if marks else whole
        kept_private = self._look_for_secrets(seen, where, number)
        plain = [normalised(content) for content in contents]
        if row.text is None:
            prompt = [f"{m['role']}:{content}" for m, content in zip(row.messages, plain, strict=True)]
        self.keys.append(key_of(prompt or plain))
        self.prompts.append(key_of(prompt[:-1]) if prompt else 0)
        spoken = [c for m, c in zip(row.messages, plain, strict=True) if m["role"] != "system"] if prompt else plain
        spoken_text = " ".join(spoken)
        words = words_of(spoken_text)
        self.languages[language_of(spoken_text, words)] += 1
        self.characters.append(len(whole) - len(contents) + 1)
        self.words.append(len(words))
        if self.meter is None:
            self.trained.append(trained)
        if not marks and not kept_private:
            self._offer_example(row, self.shapes[self.shape[number]])
        return words

    def _look_for_secrets(self, seen: str, where: str, number: int) -> bool:
        """Note the kinds of keys and of personal data; whether there are any."""
        keys, personal = secrets.secrets_in(seen), secrets.personal_in(seen)
        for kind in keys:
            self.secrets.add(kind, where)
        for kind in personal:
            self.personal.add(kind, where)
        if keys:
            self.verdicts[self.raw[number]] = Verdict.SECRET
        return bool(keys or personal)

    def _offer_example(self, row: Row, shape: str) -> None:
        known = self.examples.get(shape)
        if known is None or _characters(row) <= EXAMPLE_CHARACTERS < _characters(known):
            self.examples[shape] = row


def _characters(row: Row) -> int:
    return len(row.text) if row.text is not None else sum(len(m["content"]) for m in row.messages)
