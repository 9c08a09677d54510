"""The Request: a question to the planner, as the command line or a caller words it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prefer = Literal["balanced", "quality", "speed", "memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asks for. settings: `key=value` words that pin fields of the Recipe or the Job."""

    model: str
    data: str | None = None
    eval_data: str | None = None
    gpu: str | None = None
    vram_gib: float | None = None
    seq_len: int | None = None
    prefer: Prefer = "balanced"
    settings: tuple[str, ...] = ()
