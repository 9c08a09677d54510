"""The Request: a question to the planner, as the command line or a caller words it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prefer = Literal["balanced", "quality", "speed", "memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asks for. settings: `key=value` words that pin fields of the Recipe or the Job.

    prefer: None is the preset's, else balanced. preset: a name of profiles/presets, whose values stand where the user
    said nothing. max_memory_gib: of the device, at most. max_hours, max_energy_kwh: of the whole run, at most.
    min_rank: of the adapter, at least. from_adapter: folder of an adapter to continue. assume_tokens: plan with assumed
    lengths where a catalogue model's tokenizer cannot be fetched. served_by: what must be able to load the adapter.
    """

    model: str
    data: str | None = None
    eval_data: str | None = None
    mapping: str | None = None
    gpu: str | None = None
    vram_gib: float | None = None
    seq_len: int | None = None
    prefer: Prefer | None = None
    preset: str | None = None
    settings: tuple[str, ...] = ()
    max_memory_gib: float | None = None
    max_hours: float | None = None
    max_energy_kwh: float | None = None
    min_rank: int | None = None
    from_adapter: str | None = None
    served_by: str | None = None
    assume_tokens: bool = True
