"""Answers kept: a question that `autoft estimate` was asked before is answered without importing torch.

The key of an entry is a digest of everything that shapes the answer, down to the source of the planner and trainer.
What depends on the moment is not kept: free memory is compared anew, and a CPU throughput that planning measured itself
holds for a day. A kept bench is part of the question.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import autoft
import autoft.profiles
import autoft.trainer
from autoft.errors import FileFormatError
from autoft.home import home, write_text
from autoft.planner.candidates import parse_settings
from autoft.planner.estimate import Estimate
from autoft.planner.request import Request
from autoft.planner.target import Target, target_of
from autoft.planner.time import measure_cpu_flops
from autoft.profiles.bench_store import THREADS
from autoft.profiles.hardware import Hardware
from autoft.profiles.host import installed_version
from autoft.trainer.recipe import Recipe
from autoft.trainer.resolve import config_source, resolve

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate")
KEPT_ENTRIES = 500
# Of the Target and its card: words, and what differs from one moment to the next
MOMENTARY = (
    "name",
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
    target = target_of(
        hardware, gpu_name=request.gpu, vram_gib=request.vram_gib, cpu_flops_per_s=functools.cache(measure_cpu_flops)
    )
    ref = resolve(request.model)
    config = config_source(ref)
    if config is None:
        return None
    facts = {
        "model": [request.model, ref.kind, str(ref.path), ref.hub_id],
        "config": hashlib.sha256(config).hexdigest(),
        "settings": [recipe_pins, job_pins, request.seq_len],
        "target": _target_facts(target, hardware),
        "versions": {name: installed_version(name) for name in LIBRARIES},
        "autoft": [autoft.__version__, _source_digest()],
        "python": [platform.python_version(), platform.platform()],
    }
    return Question(hashlib.sha256(_canonical(facts)).hexdigest(), target)


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
    notes = estimate.assumptions
    if target.gpu is None and target.bench is None:
        notes = (*notes, f"time: measured earlier today, {kept.at} UTC; --no-cache measures anew")
    return replace(kept, estimate=replace(estimate, available_bytes=available, assumptions=notes))


def keep(question: Question, known: Kept) -> None:
    """Keep an answer where AUTOFT_HOME can be written to; the oldest beyond KEPT_ENTRIES go."""
    answer = {
        "recipe": known.recipe.to_dict(),
        "estimate": known.estimate.to_dict(),
        "explanation": known.explanation,
        "at": datetime.datetime.now(datetime.UTC).strftime("%H:%M"),
    }
    entry = {"key": question.key, "sha256": _digest(question.key, answer), "answer": answer}
    with suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        write_text(_path(question), json.dumps(entry))
        for old in sorted(_folder().glob("*.json"), key=_age, reverse=True)[KEPT_ENTRIES:]:
            old.unlink(missing_ok=True)


def _read(question: Question) -> Kept | None:
    """Only an entry that is whole and answers this very question."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, FileFormatError):
        entry = json.loads(_path(question).read_text(encoding="utf-8"))
        answer = entry["answer"]
        if entry["key"] == question.key and entry["sha256"] == _digest(question.key, answer):
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
    facts["context"] = [target.device_bytes(0), target.assumptions]
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
    for package in (__file__, autoft.trainer.__file__, autoft.profiles.__file__):
        folder = Path(str(package)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"\0{folder.name}/{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _digest(key: str, answer: Any) -> str:
    return hashlib.sha256(_canonical([key, answer])).hexdigest()


def _folder() -> Path:
    return home() / "estimates"


def _path(question: Question) -> Path:
    return _folder() / f"{question.key}.json"


def _age(path: Path) -> float:
    """Time of the last change; a file that is gone meanwhile counts as the oldest."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
