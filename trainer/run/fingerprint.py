"""What a run is made from. A run goes on from a checkpoint bit for bit only where this is the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.home import sha256
from autoft.settings import settings_of
from autoft.trainer.data.prepare import Prepared
from autoft.trainer.data.tokens import Example
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.job import Job
from autoft.trainer.sources.weights import fingerprint

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets")
# Of the job, what changes no weight: when it is saved, and who is told
HARMLESS = tuple(name for name, field in settings_of(Job).items() if field.setting.group == "Checkpoints")
# How the micro-batches of an optimizer step are shared out: their number is compared instead
SHARING = ("num_gpus", "hosts", "link", "accumulation")


def identity_of(job: Job, prepared: Prepared, weights: Path) -> dict[str, Any]:
    """Plain values: the job, digests of what is trained and held out, sizes and samples of the base, versions.

    Of an adapter that is continued the SHA-256 of its file; None where the file is gone, as after its first checkpoint
    a run needs it no more.
    """
    adapter = None if job.from_adapter is None else Path(job.from_adapter).expanduser() / ADAPTER
    return {
        "job": job.to_dict(),
        "data_sha256": digest_of(prepared.train.examples),
        "eval_data_sha256": digest_of(prepared.heldout),
        "base": {path.name: path.stat().st_size for path in sorted(weights.glob("*.safetensors"))},
        "base_fingerprint": fingerprint(weights),
        "adapter_sha256": sha256(adapter) if adapter is not None and adapter.is_file() else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of autoft and the libraries that shape a step."""
    return {"autoft": __version__, **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def digest_of(examples: Iterable[Example]) -> str:
    """SHA-256 of all token ids and labels, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.input_ids).to_bytes(8, "little"))
        digest.update(array("i", example.input_ids).tobytes())
        digest.update(array("i", example.labels).tobytes())
    return digest.hexdigest()


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is another than it was, a few words each; empty when the run can go on bit for bit."""
    differences = [
        f"{path} was {was!r} and is {is_!r}"
        for path, was, is_ in _differences(before["job"], now["job"])
        if path not in (*HARMLESS, *SHARING)
    ]
    then, today = _micro_batches(before["job"]), _micro_batches(now["job"])
    if then != today:
        differences.append(f"an optimizer step had {then} micro-batches and has {today}")
    if before["data_sha256"] != now["data_sha256"]:
        differences.append(f"the training data ({now['job']['data']}) have changed")
    if before["eval_data_sha256"] != now["eval_data_sha256"]:
        differences.append("the held-out rows have changed")
    known = before.get("base_fingerprint", now["base_fingerprint"])  # not in checkpoints from before it
    if (before["base"], known) != (now["base"], now["base_fingerprint"]):
        differences.append(f"the weights of {now['job']['model']} have changed")
    began, adapter = before.get("adapter_sha256"), now["adapter_sha256"]
    if None not in (began, adapter) and began != adapter:
        differences.append(f"the adapter that it continues ({now['job']['from_adapter']}) has changed")
    differences += [
        f"{name} was {was} and is {is_}" for name, was, is_ in _differences(before["versions"], now["versions"])
    ]
    return differences


def _micro_batches(job: dict[str, Any]) -> int:
    """Of an optimizer step, of all processes."""
    return int(job.get("num_gpus", 1) * job.get("accumulation", 1))


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    differences: list[tuple[str, Any, Any]] = []
    for key in {**before, **now}:
        was, is_ = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(is_, dict):
            differences += _differences(was, is_, f"{path}{key}.")
        elif was != is_:
            differences.append((f"{path}{key}", was, is_))
    return differences
