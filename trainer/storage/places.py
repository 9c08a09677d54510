"""Where the model and the data of a run lie. Files that people publish have names alone; the paths stay in one file."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.home import write_text
from autoft.schema import object_in
from autoft.trainer.job import Job

LOCAL = "local.json"
IGNORE = ".gitignore"  # which `git` and `hf upload` both read
NAMED = ("model", "data", "eval_data", "from_adapter")
HUB_FOLDER = "models--"  # how huggingface_hub's cache names the folder of a model: models--OWNER--NAME


def public_name(path: str) -> str:
    """The last part of an absolute path, the hub id of a folder in the hub's cache; a name that is no path stays."""
    full = Path(path).expanduser()
    if not full.is_absolute():
        return path
    cached = next((part for part in full.parts if part.startswith(HUB_FOLDER)), None)
    if cached is not None and full.suffix != ".gguf":
        return cached.removeprefix(HUB_FOLDER).replace("--", "/", 1)
    return full.name or path


def public_job(job: Job) -> Job:
    """The job with names where it has absolute paths."""
    return _renamed(job, {field: public_name(path) for field, path in _paths(job).items()})


def without_paths(value: Any, job: Job) -> Any:
    """Plain values in which each string has names for the job's paths, and ~ for the user's home."""
    names = {path: public_name(path) for path in _paths(job).values()} | {str(Path.home()): "~"}
    return _replaced(value, {path: name for path, name in names.items() if len(Path(path).parts) > 1})


def write_places(folder: Path, job: Job, base: Path | None = None) -> None:
    """Keep the paths in the run's folder, in a file that is not published with it. base: where the weights lie."""
    _write(folder, {**_paths(job), **({} if base is None else {"base": str(base.absolute())})})


def write_base_place(folder: Path, base: Path) -> None:
    """Keep where the base of an adapter lies, as `write_places` does."""
    _write(folder, {"base": str(base.absolute())})


def read_places(folder: Path) -> dict[str, str]:
    """The paths that the run in `folder` had here; empty where the file is gone or damaged."""
    return {name: path for name, path in object_in(folder / LOCAL).items() if isinstance(path, str)}


def private_job(job: Job, folder: Path) -> Job:
    """The job of a file in `folder` with the paths that it had here, where its names are still those of the paths."""
    places = read_places(folder)
    named = {field: getattr(job, field) for field in NAMED if field in places}
    return _renamed(job, {field: places[field] for field, name in named.items() if name == public_name(places[field])})


def forget_host(folder: Path) -> None:
    """TensorBoard names its files after the machine; they get a name without it."""
    host = socket.gethostname()
    for path in folder.rglob(f"*tfevents*.{host}.*"):
        path.rename(path.with_name(path.name.replace(f".{host}.", ".host.")))


def _write(folder: Path, places: dict[str, str]) -> None:
    write_text(folder / LOCAL, json.dumps(places, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / IGNORE, f"# paths of the machine that trained this: useless elsewhere\n{LOCAL}\n")


def _paths(job: Job) -> dict[str, str]:
    """What the job has by an absolute path."""
    named = {field: getattr(job, field) for field in NAMED}
    return {field: path for field, path in named.items() if path is not None and public_name(path) != path}


def _renamed(job: Job, names: dict[str, str]) -> Job:
    return replace(
        job,
        model=names.get("model", job.model),
        data=names.get("data", job.data),
        eval_data=names.get("eval_data", job.eval_data),
        from_adapter=names.get("from_adapter", job.from_adapter),
    )


def _replaced(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, names) for each in value)
    if isinstance(value, str):
        for path in sorted(names, key=len, reverse=True):
            value = value.replace(path, names[path])
    return value
