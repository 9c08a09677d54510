"""The catalogue: one TOML file a profile, every figure with its basis and its source.

Built-in files lie in profiles/KIND, the user's own in AUTOFT_HOME/profiles/KIND. The user's override or add, and are
read and checked in the same way; one that is wrong is left out with a warning and never takes the others along.
"""

from __future__ import annotations

import functools
import importlib.resources
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from autoft.errors import FileFormatError
from autoft.home import home
from autoft.schema import Record, read_text

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure(Record):
    """A number from a document. basis: under which conditions it holds; source: the document."""

    value: float
    basis: str
    source: str

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError("value must be above 0")
        if not self.basis.strip() or not self.source.strip():
            raise ValueError("basis and source must say something")


class Named(Protocol):
    """What a profile of any kind is to the loader."""

    @property
    def name(self) -> str: ...

    @classmethod
    def from_toml(cls, text: str, *, where: str = "") -> Self: ...


Profile = TypeVar("Profile", bound=Named)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf(Generic[Profile]):
    """All profiles of a kind. own: the user's file of each that has one; problems: of the user's files left out."""

    profiles: dict[str, Profile]
    own: dict[str, Path]
    problems: tuple[FileFormatError, ...]


def load(folder: str, cls: type[Profile]) -> dict[str, Profile]:
    """The profiles of profiles/`folder` by name, the user's own among them.

    Raises: FileFormatError for a built-in file that is wrong. A user's is logged as a warning, once, and left out.
    """
    return shelf(folder, cls).profiles


def shelf(folder: str, cls: type[Profile]) -> Shelf[Profile]:
    """As `load`, with the files and the problems of the user's own."""
    profiles: Shelf[Profile] = _shelf(folder, cls, own_folder(folder))
    return profiles


def built_in(folder: str, cls: type[Profile]) -> dict[str, Profile]:
    """As `load`, without the user's own."""
    profiles: dict[str, Profile] = _built_in(folder, cls)
    return dict(profiles)


def own_folder(folder: str) -> Path:
    """Where the user's profiles of a kind lie. Not created here."""
    return home() / "profiles" / folder


def forget() -> None:
    """Read the user's files anew when they are next asked for."""
    _shelf.cache_clear()


def parse(text: str, cls: type[Profile], *, where: str, file_name: str | None = None) -> Profile:
    """A profile from its TOML text. file_name: what its file is called, where that must agree with its name.

    Raises: FileFormatError naming `where` with the line, or the dotted path, of the first thing wrong.
    """
    profile = cls.from_toml(text, where=where)
    if not NAME.fullmatch(profile.name):
        raise FileFormatError(
            f"{where}: name = {profile.name!r} cannot be a file's name", fix="lower-case letters, digits, dots, dashes"
        )
    if file_name is not None and f"{profile.name}.toml" != file_name:
        raise FileFormatError(f"{where}: name = {profile.name!r}", fix="name the file after it")
    return profile


def problems_of(folder: str, cls: type[Named]) -> tuple[int, list[FileFormatError]]:
    """How many files of a kind there are, built-in and the user's own, and what is wrong with them."""
    files = [(f"profiles/{folder}/{file.name}", file) for file in _built_in_files(folder)]
    files += [(str(file), file) for file in _own_files(own_folder(folder))]
    problems = []
    for where, file in files:
        try:
            parse(_text(file), cls, where=where, file_name=file.name)
        except FileFormatError as problem:
            problems.append(problem)
    return len(files), problems


@functools.cache
def _built_in(folder: str, cls: type[Named]) -> dict[str, Any]:
    profiles = {}
    for file in _built_in_files(folder):
        profile = parse(_text(file), cls, where=f"profiles/{folder}/{file.name}", file_name=file.name)
        profiles[profile.name] = profile
    return profiles


@functools.cache
def _shelf(folder: str, cls: type[Named], own: Path) -> Shelf[Any]:
    profiles: dict[str, Any] = dict(_built_in(folder, cls))
    files: dict[str, Path] = {}
    problems = []
    for path in _own_files(own):
        try:
            profile = parse(_text(path), cls, where=str(path), file_name=path.name)
        except FileFormatError as problem:
            problems.append(problem)
            log.warning("Warning: %s; that profile is left out", problem.what)
        else:
            profiles[profile.name] = profile
            files[profile.name] = path
    return Shelf(profiles=dict(sorted(profiles.items())), own=files, problems=tuple(problems))


def _built_in_files(folder: str) -> list[Any]:
    files = importlib.resources.files(f"autoft.profiles.{folder}").iterdir()
    return sorted(
        (file for file in files if file.name.endswith(".toml")), key=lambda file: file.name.removesuffix(".toml")
    )


def _own_files(own: Path) -> list[Path]:
    try:
        return sorted(own.glob("*.toml"))
    except OSError:
        return []


def _text(file: Any) -> str:
    return read_text(file) if isinstance(file, Path) else str(file.read_text(encoding="utf-8"))
