"""What a check of data found, for the terminal and for JSON: no text of any row but the one example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoft.schema import Record

Severity = Literal["fault", "warning", "note"]
FIXED = {"broken", "other-shape", "in-both-splits"}  # faults that a cleaned copy is without


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding(Record):
    """One kind of trouble. A fault stops a run or spoils it.

    rows: how many rows have it. places: the first of them, as file:line. fix: what to do.
    """

    severity: Severity
    kind: str
    what: str
    rows: int
    places: tuple[str, ...]
    fix: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin(Record):
    """Rows of at least `start` and less than `end`."""

    start: int
    end: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Place(Record):
    """A row and its length."""

    where: str
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread(Record):
    """How long rows are. unit: tokens | characters | words. percentiles: by "5", "25", "50", "75", "95" and "99"."""

    unit: str
    total: int
    mean: float
    shortest: int
    longest: int
    percentiles: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit(Record):
    """Rows that are longer than a limit: conversations are left out by a run, texts are cut in pieces."""

    tokens: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths(Record):
    """Lengths of all usable rows.

    estimated: tokens are estimated from bytes, since no model was named. trained_share: of all tokens (estimated: of
    all characters), those that are trained. context: the model's longest sequence. truncated: by limit, ascending.
    """

    estimated: bool
    tokens: Spread
    characters: Spread
    words: Spread
    trained_share: float
    histogram: tuple[Bin, ...]
    longest: tuple[Place, ...]
    truncated: tuple[Limit, ...]
    context: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment(Record):
    """A piece of the rendered example."""

    text: str
    trained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Example(Record):
    """A row as the model sees it. template: model, the name of one that was supplied, or none without a model."""

    where: str
    template: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed(Record):
    """A cleaned copy. dropped: rows by reason. changed: kept rows by what was changed in them."""

    path: str
    report: str
    kept: int
    dropped: dict[str, int]
    changed: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report(Record):
    """All that a check found.

    usable: `autoft run` takes the data as it is. rows: every row of the file, broken ones too; usable_rows: those that
    can be trained. format: the shape of most rows; formats: rows by shape. languages: usable rows by language.
    """

    data: str
    eval_data: str | None
    model: str | None
    usable: bool
    rows: int
    usable_rows: int
    eval_rows: int | None
    format: str | None
    format_share: float
    formats: dict[str, int]
    lengths: Lengths | None
    languages: dict[str, int]
    findings: tuple[Finding, ...]
    example: Example | None
    fixed: Fixed | None = None

    @property
    def trainable(self) -> bool:
        """`autoft run` takes the data, or the cleaned copy of it."""
        left = {finding.kind for finding in self.of("fault")} - FIXED
        return self.usable or (self.fixed is not None and not left)

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity, in order."""
        return [finding for finding in self.findings if finding.severity == severity]
