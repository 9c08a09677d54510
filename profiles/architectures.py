"""What are the kernels of a card like? architectures.toml has a table a compute capability."""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass

from autoft.schema import Record, parse_toml

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture(Record):
    """One compute capability; architectures.toml says what each figure is, and where it is from."""

    capability: Capability
    name: str
    threads_per_multiprocessor: int
    cublas_workspace_bytes: int
    large_shared_memory: bool = False
    heads_of_96: bool = False
    shared_float32: bool = False
    joules_per_flop: float | None = None
    context_bytes: int | None = None
    same_kernels: Capability | None = None


@functools.cache
def architectures() -> dict[Capability, Architecture]:
    """All by their compute capability, the oldest first."""
    text = importlib.resources.files("autoft.profiles").joinpath("architectures.toml").read_text(encoding="utf-8")
    where = "profiles/architectures.toml"
    rows = [Architecture.from_dict(row, where=where) for row in parse_toml(text, where=where)["architecture"]]
    return {row.capability: row for row in rows}


@functools.cache
def architecture(capability: Capability) -> Architecture:
    """That of a card; of a capability that has no table, the newest before it."""
    known = architectures()
    older = [each for each in known if each <= capability]
    return known[max(older, default=min(known))]
