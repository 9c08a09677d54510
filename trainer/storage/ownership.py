"""What of a run's folder autoft has written. Only that is ever removed: what else lies there stays, and is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from autoft.schema import object_in
from autoft.trainer.storage.checkpoint import FILE, digest_of_values, is_written
from autoft.trainer.storage.event_log import EVENTS
from autoft.trainer.storage.places import IGNORE, LOCAL

RESULT = "result.json"
CHECKPOINTS = "checkpoints"
WORK = ".trainer"  # of transformers
RUN = "run.json"  # of an unfinished run: about it
REPORT = "report.html"
CARD = "README.md"
TENSORBOARD = "tensorboard"
NOT_FINITE = "not-finite.json"
NOT_HASHED = (EVENTS, RUN, RESULT, REPORT, LOCAL, IGNORE)  # written to, or removed, after the hashing; or not published
# What a write that was cut short leaves: autoft's own, safetensors', and files that systems put into every folder
LITTER = (".*.aside", ".tmp??????", ".DS_Store", "Thumbs.db", "desktop.ini")
# What an unfinished run may hold besides its checkpoints; while it saves, PEFT's and transformers' files too
UNFINISHED_FILES = (
    *NOT_HASHED, NOT_FINITE, "plan.toml", CARD, "adapter_config.json", "adapter_model.safetensors",
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip


def foreign(folder: Path) -> list[str]:
    """Files in `folder`, by their paths in it, that no run of autoft has written; all of them where it is no run's."""
    is_ours = _ours(folder)
    return sorted(name for name in _files(folder) if not is_ours(name))


def is_finished(folder: Path) -> bool:
    """Whether a finished run is there: a result.json of ours, whole or not so new as this version."""
    return _artifacts(folder) is not None


def written(folder: Path, part: str = "") -> list[str]:
    """Files in `folder`, or in its `part`, by their paths in it, that a run of autoft has written."""
    is_ours = _ours(folder)
    return [name for name in _files(folder) if is_ours(name) and PurePosixPath(name).is_relative_to(part)]


def discard(folder: Path, part: str = "") -> None:
    """Remove what a run has written in `folder`, or in its `part`, and the folders that this empties."""
    if folder.is_symlink():
        return
    for name in written(folder, part):
        with suppress(OSError):
            (folder / name).unlink()
    for path in sorted([folder / part, *(folder / part).rglob("*")], reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # not empty
                path.rmdir()


def about_run(folder: Path) -> dict[str, Any]:
    """run_id, started_in and predicted of an unfinished run; empty where its run.json is lost or damaged."""
    return _about(folder) or {}


def _ours(folder: Path) -> Callable[[str], bool]:
    artifacts = _artifacts(folder)
    if artifacts is not None:
        return lambda name: is_of_training(name) or name in artifacts or name in NOT_HASHED
    if _about(folder) is not None or is_written(folder / CHECKPOINTS):
        return lambda name: is_of_training(name) or any(fnmatch(name, pattern) for pattern in UNFINISHED_FILES)
    return _is_litter


def is_of_training(name: str) -> bool:
    """Whether a run writes the file while it trains: checkpoints, logs and what is cut short in the writing."""
    first, _, rest = name.partition("/")
    if first == CHECKPOINTS:
        return FILE.fullmatch(rest) is not None
    if first == TENSORBOARD:
        return "tfevents" in PurePosixPath(rest).name
    return (first == WORK and rest != "") or _is_litter(name)


def _is_litter(name: str) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in LITTER)


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _artifacts(folder: Path) -> set[str] | None:
    """What the result.json of a finished run says it has written; None where none is there."""
    result = object_in(folder / RESULT)
    artifacts = result.get("artifacts")
    return set(artifacts) if isinstance(artifacts, dict) and "autoft_version" in result else None


def _about(folder: Path) -> dict[str, Any] | None:
    about = object_in(folder / RUN)
    return about if about and about.pop("sha256", None) == digest_of_values(about) else None
