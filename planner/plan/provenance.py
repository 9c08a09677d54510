"""What was a plan made from? Digests of job, model and data, and versions: a later run can tell what has changed."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from autoft import __version__
from autoft.home import home, sha256
from autoft.planner.plan.cached_estimates import LIBRARIES
from autoft.profiles.host import installed_version
from autoft.schema import Record
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import ModelRef, config_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs(Record):
    """SHA-256 in hex digits of each input, None where there are no bytes to take it of.

    job: of all that [job] sets otherwise than by default; it tells whether the file was edited.
    model_config: of config.json; of a GGUF file's header, or the catalogue's entry, where that is what was read.
    adapter: of the weights of an adapter that is continued.
    data, eval_data: see `data_digest`. versions: of autoft and the libraries that shape a step.
    """

    job_sha256: str
    model_config_sha256: str | None = None
    data_sha256: str | None = None
    eval_data_sha256: str | None = None
    adapter_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


def inputs_of(job: Job, ref: ModelRef) -> Inputs:
    """As they are now. Raises: ModelError when the model's configuration cannot be read."""
    config = config_source(ref)
    installed = {name: installed_version(name) for name in LIBRARIES}
    return Inputs(
        job_sha256=job_digest(job),
        model_config_sha256=hashlib.sha256(config).hexdigest() if config is not None else None,
        data_sha256=data_digest(job.data),
        eval_data_sha256=data_digest(job.eval_data),
        adapter_sha256=None if job.from_adapter is None else data_digest(str(Path(job.from_adapter) / ADAPTER)),
        versions={
            "autoft": __version__,
            **{name: version for name, version in installed.items() if version is not None},
        },
    )


def job_digest(job: Job) -> str:
    """A field that is new in a later autoft does not change it as long as it has its default."""
    settings = {**_not_default(job), "recipe": _not_default(job.recipe)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def data_digest(data: str | None) -> str | None:
    """Of a file's bytes; of several (a folder, a pattern), of their names and digests; None where no file is named."""
    if data is None:
        return None
    if data == "starter":
        from autoft.trainer.data.support_desk import write

        return _joint(list(write(home() / "data")))
    path = Path(data).expanduser()
    if path.is_file():
        return sha256(path)
    pattern = str(path / "**" if path.is_dir() else path)
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = sorted(file for file in map(Path, names) if file.is_file())
    return _joint(files) if files else None


def _joint(files: list[Path]) -> str:
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _not_default(record: Job | Recipe) -> dict[str, object]:
    values = record.to_dict()
    return {f.name: values[f.name] for f in dataclasses.fields(record) if getattr(record, f.name) != f.default}
