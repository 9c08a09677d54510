"""What an exporter is: the record that each kind fills in, what it is asked for, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autoft.schema import Record
from autoft.trainer.export.scores import Drift, Quality
from autoft.trainer.export.source import Source
from autoft.trainer.export.texts import Texts
from autoft.trainer.sources.resolve import Say


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to export. quant: one of the exporter's, None where it has none. name: of a model for Ollama or vLLM.

    force: write over an export, and keep one past its bound. say: told what takes long.
    """

    out: Path
    quant: str | None = None
    name: str | None = None
    force: bool = False
    say: Say = lambda _: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound(Record):
    """What an export may differ by. of: mean distance of log-probs, or what the mean log-prob has lost; in nats."""

    of: Literal["distance", "loss"]
    nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a loaded export is asked. logits: file of the reference's; dtype: in which transformers computes."""

    texts: Texts
    logits: Path
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a loaded export answered. logprobs: of the scored tokens; max_logit: distance, None where not compared."""

    logprobs: tuple[float, ...]
    max_logit: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Exporter:
    """A kind of export.

    quants: the values of --quant, the first is the default. tools: what runs it, for people. modules: importable only
    with the extra `gguf`. check: refuses, before anything is written, what the kind cannot hold. disk_bytes: most that
    is written at a time. write: writes into a folder and returns the path of the export in it. reopen: loads that with
    the tool it is for, in a process of its own. bound: what it may differ by. commands: what to type next, at a path.
    """

    name: str
    summary: str
    is_folder: bool
    check: Callable[[Source, Order], None]
    disk_bytes: Callable[[Source, Order], int]
    write: Callable[[Source, Path, Order], Path]
    reopen: Callable[[Source, Path, Order, Question], Answer]
    bound: Callable[[Order], Bound]
    commands: Callable[[Source, Order], tuple[str, ...]]
    quants: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Export(Record):
    """What was exported, and how good it is beside base and adapter in 16 bits.

    files: bytes by name. reference: of base and adapter; quality: of what was written, loaded again. kept_past_bound:
    whether --force kept it. texts: what both were judged on, scored_tokens of them. seconds: all that it took.
    """

    kind: str
    path: str
    quant: str | None
    files: dict[str, int]
    bytes: int
    texts: str
    scored_tokens: int
    computed_in: str
    reference: Quality
    quality: Quality
    drift: Drift
    bound: Bound
    kept_past_bound: bool
    seconds: float
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lineage: dict[str, Any] = field(default_factory=dict)
