"""Counting what rows have, with the first places of each, and remembering where a million rows stand."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field

from autoft.errors import DataError

FIRST_PLACES = 5
MOST_KINDS = 40  # of faults told apart; what comes after is counted together
SHOWS_ROW = re.compile(r", which makes of it: .*;(?= without --map )", re.DOTALL)
WHERE = re.compile(r"(?P<where>.+?(?:: row |:)\d+(?::\d+)?): (?P<what>.*)", re.DOTALL)


@dataclass(slots=True)
class Count:
    """Rows with one kind of trouble, and where the first of them are."""

    rows: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.rows += 1
        if len(self.places) < FIRST_PLACES:
            self.places.append(place)


class Tally(dict[str, Count]):
    """Count by kind."""

    def __missing__(self, kind: str) -> Count:
        return self.setdefault(kind, Count())

    def add(self, kind: str, place: str) -> None:
        self[kind].add(place)


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of broken row: what is wrong with the first of them, and how to fix it."""

    what: str
    fix: str | None
    count: Count


def place_of(error: DataError) -> tuple[str, str]:
    """(file:line, what is wrong there) of the error of a row that could not be read."""
    match = WHERE.fullmatch(error.what)
    return (match["where"], match["what"]) if match else ("", error.what)


class Faults(dict[str, Fault]):
    """Errors of rows, alike when they differ only in numbers."""

    def add(self, where: str, what: str, fix: str | None) -> None:
        # the example of a mapping that a fix may hold would show the row
        fix = SHOWS_ROW.sub(";", fix) if fix else fix
        kind = re.sub(r"\d+", "N", what)
        if kind not in self and len(self) >= MOST_KINDS:
            kind, what = "other", "broken in another way"
        self.setdefault(kind, Fault(what, fix, Count())).count.add(where)


class Places:
    """Where rows stand, in 12 bytes a row: "data.jsonl:" once, and the number of each."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}
        self._names: list[str] = []
        self._head = array("I")
        self._number = array("q")

    def __len__(self) -> int:
        return len(self._head)

    def add(self, where: str) -> None:
        head = where.rstrip("0123456789")
        digits = where[len(head) :]
        if not digits or len(digits) > 18 or digits[0] == "0":
            head, digits = where, "-1"
        if head not in self._heads:
            self._heads[head] = len(self._names)
            self._names.append(head)
        self._head.append(self._heads[head])
        self._number.append(int(digits))

    def __getitem__(self, index: int) -> str:
        number = self._number[index]
        return self._names[self._head[index]] + (str(number) if number >= 0 else "")
