"""Checkpoints: written aside, hashed, made durable, then renamed; read only where every byte is as it was written.

A checkpoint is a folder `step-00000012` with what a run needs to go on bit for bit: trained weights, optimizer,
schedule, random numbers, and how far it was. Tensors are safetensors, all else JSON; nothing is ever unpickled.
`manifest.json`, written last, has the SHA-256 of every file and of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import OutputError
from autoft.home import sha256

MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "state.safetensors"
SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{8})")
_WRITING, _ASIDE = ".writing-", ".not-whole-"
# What is written below the folder of checkpoints; safetensors writes aside under a name of its own
FILE = re.compile(r"(\.writing-|\.not-whole-)?step-\d{8}(-\d+)?/(\w+\.(json|safetensors)|\.tmp\w{6})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that is whole. run_id: of the run that wrote it; identity: what that run was made from."""

    folder: Path
    step: int
    run_id: str
    identity: dict[str, Any]

    def state(self) -> dict[str, Any]:
        """What `write_checkpoint` was given, its tensors on the CPU."""
        from safetensors.torch import load_file

        packed = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        state: dict[str, Any] = _unpacked(packed, load_file(self.folder / TENSORS))
        return state


def write_checkpoint(
    parent: Path,
    step: int,
    state: dict[str, Any],
    texts: Mapping[str, str],
    *,
    run_id: str,
    identity: dict[str, Any],
) -> tuple[Checkpoint, int]:
    """Write one and make it durable; returns it and its bytes.

    state: nested dicts, lists, tuples, numbers, texts and tensors. texts: other files, by name.
    Raises: OSError when the disk does not take it; then nothing of it is left.
    """
    aside = parent / f"{_WRITING}{_name(step)}"
    parent.mkdir(parents=True, exist_ok=True)
    _remove(aside)
    try:
        aside.mkdir(exist_ok=True)
        tensors: dict[str, Any] = {}
        packed = json.dumps(_packed(state, tensors, ""))
        _save_tensors(tensors, aside / TENSORS)
        for name, text in {STATE: packed, **texts}.items():
            _write(aside / name, text)
        files: dict[str, dict[str, Any]] = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(aside.iterdir())
        }
        manifest = {
            "schema_version": SCHEMA_VERSION, "step": step, "run_id": run_id, "identity": identity, "files": files,
        }  # fmt: skip
        _write(aside / MANIFEST, json.dumps({**manifest, "sha256": digest_of_values(manifest)}, indent=1))
        sync(aside)
        target = parent / _name(step)
        _remove(target)
        aside.rename(target)
        aside = target  # which goes as well when the disk does not hold its name
        sync(parent)
    except OSError:
        _remove(aside)
        raise
    total: int = sum(file["bytes"] for file in files.values())
    return Checkpoint(target, step, run_id, identity), total


def newest_checkpoint(parent: Path, *, run_id: str | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest one that is whole, and of each newer one a sentence why it is not. run_id: others are foreign."""
    skipped: list[str] = []
    for folder in reversed(_folders(parent)):
        try:
            return open_checkpoint(folder, run_id=run_id), skipped
        except OutputError as error:
            skipped.append(error.what)
    return None, skipped


def open_checkpoint(folder: Path, *, run_id: str | None = None) -> Checkpoint:
    """Raises: OutputError when it is not whole, or of another run."""
    manifest = _read_manifest(folder)
    if run_id is not None and manifest["run_id"] != run_id:
        raise OutputError(f"{folder}: of another run, not of this one")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise OutputError(f"{folder}: {name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise OutputError(f"{folder}: {name} has {path.stat().st_size:,} bytes, {expected['bytes']:,} were written")
        if sha256(path) != expected["sha256"]:
            raise OutputError(f"{folder}: {name} is damaged: its SHA-256 is not the one written")
    return Checkpoint(folder, manifest["step"], manifest["run_id"], manifest["identity"])


def has_checkpoints(parent: Path) -> bool:
    """Whether there is any, whole or not."""
    return bool(_folders(parent))


def is_written(parent: Path) -> bool:
    """Whether a checkpoint is there that this program has written, whole but for what its manifest lists."""
    for folder in _folders(parent):
        with suppress(OutputError):
            _read_manifest(folder)
            return True
    return False


def checkpoint_path(parent: Path, step: int) -> Path:
    """Where the one of `step` is."""
    return parent / _name(step)


def set_aside(parent: Path, *, after: int) -> None:
    """Have those of later steps, which are not whole, count no more among the newest."""
    for folder in _folders(parent):
        if _step(folder) > after:
            folder.rename(folder.with_name(f"{_ASIDE}{folder.name}-{time.time_ns()}"))


def retain(parent: Path, keep: int, also: Collection[int] = ()) -> None:
    """Remove all but the newest `keep`, those of the steps in `also`, and what was cut short in the writing."""
    folders = _folders(parent)
    for folder in folders[: max(0, len(folders) - keep)]:
        if _step(folder) not in also:
            _remove(folder)
    for aside in parent.glob(f"{_WRITING}*"):
        _remove(aside)


def _remove(folder: Path) -> None:
    """With its files; one that is not a checkpoint's stays, and its folder. What the disk refuses stays too."""
    with suppress(OSError):
        # the manifest first: what a kill leaves of the rest is then no checkpoint
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if FILE.fullmatch(f"{folder.name}/{path.name}"):
                path.unlink(missing_ok=True)
        folder.rmdir()


def _save_tensors(tensors: dict[str, Any], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
    except SafetensorError as error:  # its own word for a full disk
        raise OSError(f"{path}: {error}") from error
    sync(path)


def _packed(value: Any, tensors: dict[str, Any], name: str) -> Any:
    """JSON for `value`, its tensors put into `tensors`. What is no plain value is a list with a word before it."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return ["tensor", name]
    if isinstance(value, dict):
        prefix = f"{name}." if name else ""
        return ["dict", [[key, _packed(item, tensors, f"{prefix}{key}")] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        word = "list" if isinstance(value, list) else "tuple"
        return [word, [_packed(item, tensors, f"{name}.{at}") for at, item in enumerate(value)]]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} has no place in a checkpoint")


def _unpacked(packed: Any, tensors: dict[str, Any]) -> Any:
    if not isinstance(packed, list):
        return packed
    word, value = packed
    if word == "tensor":
        return tensors[value]
    if word == "dict":
        return {key: _unpacked(item, tensors) for key, item in value}
    items = [_unpacked(item, tensors) for item in value]
    return items if word == "list" else tuple(items)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        digest = manifest.pop("sha256")
    except FileNotFoundError:
        raise OutputError(f"{folder}: was not written completely: {MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise OutputError(f"{folder}: {MANIFEST} is damaged: {error}") from None
    if digest != digest_of_values(manifest):
        raise OutputError(f"{folder}: {MANIFEST} is damaged: its SHA-256 is not the one written")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise OutputError(f"{folder}: written by another version of autoft (schema {manifest['schema_version']})")
    missing = {STATE, TENSORS} - set(manifest["files"])
    if missing:
        raise OutputError(f"{folder}: {min(missing)} is missing")
    if manifest["step"] != _step(folder):
        raise OutputError(f"{folder}: holds step {manifest['step']}")
    return manifest


def digest_of_values(manifest: dict[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _folders(parent: Path) -> list[Path]:
    """By step."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Have the disk hold what a file holds, or which files are in a folder."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder, and writes renames down by itself
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
