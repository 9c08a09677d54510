"""An adapter in figures: what it is, what it was trained on, how good it was, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoft.errors import FileFormatError, InputError
from autoft.home import sha256
from autoft.schema import Record, object_in
from autoft.trainer.adapters import kind_of
from autoft.trainer.evaluation.open_adapter import ADAPTER_CONFIG, AdapterFolder, open_adapter
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.export.combine import Part
from autoft.trainer.export.staging import RECORD
from autoft.trainer.result import Evaluation, Start
from autoft.trainer.storage.places import public_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary(Record):
    """One adapter.

    base: hub id or name, None where the adapter names none. title: its kind for people; rank, alpha and dropout: None
    for kinds that have none. params: weights, held in `bytes` of the file as `dtype`. data, rows, before and after: of
    its run, None where another tool trained it. continued: what its run began with. parts: what it was combined from,
    by `method`.
    """

    name: str
    folder: str
    base: str | None
    base_fingerprint: str | None
    kind: str
    title: str
    rank: int | None
    alpha: float | None
    dropout: float | None
    target_modules: tuple[str, ...] | str
    params: int
    bytes: int
    dtype: str
    sha256: str
    data: str | None = None
    rows: int | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    continued: Start | None = None
    method: str | None = None
    parts: tuple[Part, ...] = ()


def summary_of(adapter: AdapterFolder) -> Summary:
    """The figures of an opened adapter."""
    settings, result, recipe = adapter.settings, adapter.result, adapter.recipe
    path, record = adapter.folder / ADAPTER, object_in(adapter.folder / RECORD)
    parts = _parts(record, str(adapter.folder / RECORD))
    base = adapter.base
    return Summary(
        name=public_name(str(adapter.folder.absolute())),
        folder=str(adapter.folder),
        base=None if base is None else public_name(base),
        base_fingerprint=None if result is None else result.base_fingerprint,
        kind=adapter.kind,
        title=kind_of(recipe).title(recipe),
        rank=settings.get("rank"),
        alpha=settings.get("alpha"),
        dropout=settings.get("dropout"),
        target_modules=recipe.target_modules if kind_of(recipe).on_layers else (),
        params=adapter.num_params,
        bytes=path.stat().st_size,
        dtype=adapter.dtype,
        sha256=sha256(path),
        data=None if result is None else public_name(result.job.data or ""),
        rows=None if result is None else result.rows,
        before=None if result is None else result.before,
        after=None if result is None else result.after,
        continued=None if result is None else result.continued,
        method=str(record.get("method")) if parts else None,
        parts=parts,
    )


def adapters_in(folder: Path) -> tuple[list[AdapterFolder], list[str]]:
    """The adapter in `folder`, or those in the folders in it, and of each of these that cannot be opened why.

    Raises: InputError where `folder` neither is one nor holds one.
    """
    inside = sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
    if (folder / ADAPTER_CONFIG).is_file() or not inside:
        return [open_adapter(folder)], []
    opened, notes = [], []
    for path in inside:
        try:
            opened.append(open_adapter(path))
        except InputError as error:
            notes.append(f"left out: {error.what}")
    return opened, notes


def _parts(record: dict[str, object], where: str) -> tuple[Part, ...]:
    parts = record.get("parts")
    try:
        return tuple(Part.from_dict(part, where=where) for part in parts) if isinstance(parts, list) else ()
    except (FileFormatError, TypeError):
        return ()
