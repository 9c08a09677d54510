"""Estimates kept: a question that `autoft estimate` was asked before is answered without importing torch.

The key of an entry is a digest of everything that shapes the answer, down to the source of the planner and trainer.
What depends on the moment is not kept: free memory is compared anew, and a CPU throughput that planning measured itself
holds for a day. A kept bench is part of the question.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import autoft
import autoft.planner
import autoft.profiles
import autoft.trainer
from autoft.errors import FileFormatError
from autoft.planner.estimate import Estimate
from autoft.planner.estimator.target import Target, target_of_request
from autoft.planner.facts import Assumption
from autoft.planner.plan.disk_cache import Shelf, digest
from autoft.planner.request import Request
from autoft.planner.search.set_option import parse_settings
from autoft.planner.timing.allreduce import link_of
from autoft.profiles.bench_store import THREADS
from autoft.profiles.hardware import Hardware
from autoft.profiles.host import installed_version
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import ModelRef, config_source, resolve

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate")
SHELF = Shelf("estimates")
# Of the Target and its card: words, and what differs from one moment to the next
MOMENTARY = (
    "name",
    "gpus",
    "available_bytes",
    "free_bytes",
    "used_bytes",
    "index",
    "uuid",
    "pcie",
    "processes",
    "desktop_bytes",
    "status",
    "unknown",
    "key",
)


@dataclass(frozen=True, slots=True)
class Question:
    """key: hex digest of all that the answer depends on but the moment. target: the device as it is now."""

    key: str
    target: Target


@dataclass(frozen=True, slots=True)
class Kept:
    """explanation: of the figures; None when it was not asked for. at: when they were kept, UTC."""

    recipe: Recipe
    estimate: Estimate
    explanation: tuple[dict[str, Any], ...] | None = None
    at: str = ""


def ask(request: Request, hardware: Hardware) -> Question | None:
    """The Question that `request` is on this machine; None where not all can be told that its answer depends on.

    Raises: InputError of several kinds, as `make_estimate` does.
    """
    recipe_pins, job_pins = parse_settings(request.settings)
    target = target_of_request(request, hardware)
    ref = resolve(request.model)
    config = config_source(ref)
    if config is None or recipe_pins.get("new_tokens"):  # whose ids its tokenizer has, another one next time
        return None
    facts = {
        "settings": [recipe_pins, job_pins, request.seq_len],
        **facts_of(request, ref, config, target, hardware),
    }
    return Question(digest(facts), target)


def facts_of(request: Request, ref: ModelRef, config: bytes, target: Target, hardware: Hardware) -> dict[str, Any]:
    """Of model, device and software: all that an answer depends on but the moment. config: from `config_source`."""
    return {
        "model": [request.model, ref.kind, str(ref.path), ref.hub_id],
        "config": hashlib.sha256(config).hexdigest(),
        "target": _target_facts(target, hardware),
        "versions": {name: installed_version(name) for name in LIBRARIES},
        "autoft": [autoft.__version__, _source_digest()],
        "python": [platform.python_version(), platform.platform()],
    }


def recall(question: Question, *, explained: bool = False) -> Kept | None:
    """The kept answer, with `available_bytes` and `fits` as of now; None when there is none that still holds.

    explained: an answer without explanation does not do.
    """
    kept = _read(question)
    if kept is None or (explained and kept.explanation is None):
        return None
    estimate, target = kept.estimate, question.target
    available = target.available_bytes
    if estimate.device_bytes <= available:
        estimate = replace(estimate, fits="yes")
    elif target.gpu is None:  # a CPU has no cache of blocks to give back
        estimate = replace(estimate, fits="no")
    elif estimate.available_bytes != available:
        return None  # tight or no: only a replay under today's limit can tell
    if target.gpu is None and target.bench is None:
        text = f"time: measured earlier today, {kept.at} UTC; --no-cache measures again"
        earlier = Assumption(kind="time", basis="measured earlier", text=text)
        estimate = replace(
            estimate,
            assumptions=(*estimate.assumptions, text),
            assumption_records=(*estimate.assumption_records, earlier),
        )
    return replace(kept, estimate=replace(estimate, available_bytes=available))


def keep(question: Question, known: Kept) -> None:
    """Keep an answer where AUTOFT_HOME can be written to."""
    answer = {
        "recipe": known.recipe.to_dict(),
        "estimate": known.estimate.to_dict(),
        "explanation": known.explanation,
        "at": datetime.datetime.now(datetime.UTC).strftime("%H:%M"),
    }
    SHELF.keep(question.key, answer)


def _read(question: Question) -> Kept | None:
    """Only an entry that is whole and answers this very question."""
    answer = SHELF.read(question.key)
    with suppress(KeyError, TypeError, FileFormatError):
        explanation = answer["explanation"]
        return Kept(
            Recipe.from_dict(answer["recipe"]),
            Estimate.from_dict(answer["estimate"]),
            None if explanation is None else tuple(explanation),
            answer["at"],
        )
    return None


def _target_facts(target: Target, hardware: Hardware) -> dict[str, Any]:
    values = {field.name: getattr(target, field.name) for field in fields(target)}
    facts = {name: value for name, value in values.items() if name not in MOMENTARY and not callable(value)}
    facts["context"] = [target.device_bytes(0, target.num_gpus), target.assumptions]
    facts["num_gpus"] = target.num_gpus
    if target.gpu is not None and target.num_gpus > 1:
        facts["link"] = dataclasses.asdict(link_of(target.gpu))
    facts["bench"] = target.bench.to_dict() if target.bench else None
    if target.gpu is not None:
        facts["gpu"] = {key: value for key, value in target.gpu.to_dict().items() if key not in MOMENTARY}
    else:
        # each thread of PyTorch takes memory of its own
        host, threads = hardware.host, [os.environ.get(name) for name in THREADS]
        facts["cpu"] = [host.cpu, host.cores, host.bf16, threads]
        if target.measures_now:
            facts["day"] = datetime.datetime.now(datetime.UTC).date()
    return facts


def _source_digest() -> str:
    """Of the source of planner, trainer and profiles, by content."""
    digest = hashlib.sha256()
    for package in (autoft.planner.__file__, autoft.trainer.__file__, autoft.profiles.__file__):
        folder = Path(str(package)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"\0{folder.name}/{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
