"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoft.schema import Record

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding(Record):
    """status: "failed" is what stops a run, "warning" what may spoil it, "skipped" what does not apply here.

    found: what was seen, in one line. fix: what to do about it; None where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    fix: str | None = None


def one_line(error: BaseException) -> str:
    """Kind and message of an error, at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].removesuffix(": ")
