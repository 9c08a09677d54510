"""Which files does a path stand for, and which of them are held out? A file, a folder or a glob."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoft.errors import DataError

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
TEXTS = (".txt", ".md")
SHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
PACKED = (".gz", ".bz2", ".xz", ".zst")
KINDS_HELP = f"use {', '.join((*TABLES, *TEXTS))}, also with {' '.join(PACKED)} behind"

# What stands beside data and is none: papers about it, and what `datasets` and the hub write for themselves
ABOUT = re.compile(
    r"(readme|license|licence|notice|changelog|contributing|citation|requirements)\b.*"
    r"|(dataset_infos?|dataset_dict|state|metadata|config|croissant)\.json",
    re.IGNORECASE,
)
SplitName = Literal["train", "validation", "test"]
SPLITS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation", "heldout"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """Which splits are trained on, which is held out, which are not used."""

    train: tuple[str | None, ...]
    heldout: str | None
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Files to train on and files to hold out, each sorted by name. roles: the splits that their names tell."""

    train: tuple[Path, ...]
    heldout: tuple[Path, ...]
    roles: Roles


def find(path: str) -> Found | None:
    """The files that `path` stands for; None where nothing of that name is here.

    In folders and globs hidden files, descriptions, empty files and other kinds are passed over.
    Raises: DataError for a file of no known kind, and for a folder or glob without data.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _sorted_out(place, [p for p in place.rglob("*") if p.is_file()], path)
    if place.exists():
        if not _is_data(place.name):
            form = kind(place.name)
            raise DataError(
                f"{path}: {form or 'no suffix'} is not a known kind of data",
                fix="save the sheet as CSV (UTF-8)" if form in SHEETS else KINDS_HELP,
            )
        return Found((place,), (), Roles((None,), None, ()))
    fixed = next((at for at, part in enumerate(place.parts) if glob.has_magic(part)), None)
    if fixed is None:
        return None
    base = Path(*place.parts[:fixed])
    matches = base.glob("/".join(place.parts[fixed:]))
    return _sorted_out(base, [p for m in matches for p in (m.rglob("*") if m.is_dir() else [m]) if p.is_file()], path)


def kind(name: str) -> str:
    """The suffix that says how to read a file, without that of its compression: ".jsonl" of "a.jsonl.gz"."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def roles(splits: Collection[str | None]) -> Roles:
    """What each of these splits is for. None is a split without a name, which is trained on.

    Held out is the validation, or else the test; where there is nothing but those, they are trained on.
    """
    named = {split: split_in(split) if split else None for split in splits}
    train = tuple(split for split, name in named.items() if name in (None, "train"))
    if not train:
        return Roles(tuple(splits), None, ())
    heldout = next((s for wanted in ("validation", "test") for s, name in named.items() if name == wanted), None)
    return Roles(train, heldout, tuple(s for s in splits if s and s not in (*train, heldout)))


def _sorted_out(base: Path, files: Sequence[Path], path: str) -> Found:
    splits = {file: _split_of(file.relative_to(base)) for file in sorted(files) if _wanted(file, base)}
    if not splits:
        raise DataError(f"{path}: no data there", fix=f"check the path; for the files in it {KINDS_HELP}")
    by_role = roles(list(dict.fromkeys(splits.values())))
    return Found(
        tuple(file for file, split in splits.items() if split in by_role.train),
        tuple(file for file, split in splits.items() if split == by_role.heldout is not None),
        by_role,
    )


def _wanted(file: Path, base: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(base).parts)
    return not hidden and not ABOUT.fullmatch(file.name) and _is_data(file.name) and file.stat().st_size > 0


def _is_data(name: str) -> bool:
    return kind(name) in (*TABLES, *TEXTS)


def _split_of(file: Path) -> SplitName | None:
    """The split that the name of a file tells, or else that of a folder it is in, the nearest first."""
    return next((split for part in reversed(file.parts) if (split := split_in(part))), None)


def split_in(name: str) -> SplitName | None:
    """The split that a name tells: the last word of it that is one."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for word in reversed(words) for split, names in SPLITS.items() if word in names), None)
