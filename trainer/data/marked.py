"""The texts of a conversation replaced by marks, and a text with marks filled in again."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, slots=True)
class Marked:
    """Text between marks, and the marks: literal, mark, literal, ..., literal. None where there is no such text."""

    pieces: list[str] | None

    def filled(self, texts: dict[int, str]) -> tuple[str, dict[int, tuple[int, int]]]:
        """(the text, where each mark's own text first stands)."""
        places: dict[int, tuple[int, int]] = {}
        if self.pieces is None:
            return "", places
        out, at = [self.pieces[0]], len(self.pieces[0])
        for number, literal in zip(self.pieces[1::2], self.pieces[2::2], strict=True):
            text = texts[int(number)]
            places.setdefault(int(number), (at, at + len(text)))
            out += text, literal
            at += len(text) + len(literal)
        return "".join(out), places

    @property
    def marks(self) -> frozenset[int] | None:
        return None if self.pieces is None else frozenset(map(int, self.pieces[1::2]))


@dataclass(slots=True)
class Parts:
    """The texts of a conversation by their marks. of: the marks of each turn; calls, thoughts, bodies: which are that.

    key: what is the same in conversations of one structure. around: the white space before and behind each.
    """

    texts: dict[int, str] = field(default_factory=dict)
    of: list[list[int]] = field(default_factory=list)
    calls: set[int] = field(default_factory=set)
    thoughts: set[int] = field(default_factory=set)
    bodies: set[int] = field(default_factory=set)
    key: list[Any] = field(default_factory=list)
    around: dict[int, tuple[str, str]] = field(default_factory=dict)

    def span(self, mark: int, place: tuple[int, int], text: str) -> tuple[int, int]:
        """The place of a part with the white space around it that the text has kept."""
        before, behind = self.around[mark]
        start = place[0] - len(before) if text[: place[0]].endswith(before) else place[0]
        return start, place[1] + len(behind) if text.startswith(behind, place[1]) else place[1]

    def mark(self, text: str, kind: set[int] | None = None) -> str:
        """`text` with a mark for all but the white space around it; as it is where there is nothing else."""
        core = text.strip()
        if not core:
            self.key.append(text)
            return text
        number = len(self.texts)
        self.texts[number] = core
        self.of[-1].append(number)
        if kind is not None:
            kind.add(number)
        begin = text.index(core)
        before, behind = text[:begin], text[begin + len(core) :]
        self.key.append((before, behind))
        self.around[number] = (before, behind)
        return f"{before}\ue000{number}\ue001{behind}"
