"""What a plan rests on, as records: program code reads their fields, and their sentences are for people alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from autoft.schema import Record

Figures = dict[str, int | float | str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason(Record):
    """Why the plan is as it is.

    key: the field of Job or Recipe that it explains, or what else it is about: "fit", "prefer", "preset", "edit".
    text: the sentence. figures: those that it rests on, bytes and seconds as they are.
    """

    key: str
    text: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumption(Record):
    """What an Estimate takes for granted.

    kind: the figure that depends on it; "kernels" is memory and time, of layers that run in PyTorch's reference code.
    basis: where it is from: "measured", "data sheet", "assumption", "rehearsal", or of the time a key that is the same
    as long as its source is.
    """

    kind: Literal["memory", "context", "time", "exchange", "link", "host", "kernels"]
    basis: str
    text: str
    figures: Figures = field(default_factory=dict)


def sentences(records: Iterable[Reason | Assumption]) -> tuple[str, ...]:
    """What people read of them."""
    return tuple(record.text for record in records)
