"""The catalogue: one TOML file a profile, every figure with its basis and its source."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from autoft.errors import FileFormatError
from autoft.schema import Record


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


def load(folder: str, cls: type[Profile]) -> dict[str, Profile]:
    """Every file of profiles/`folder`, by name. Raises: FileFormatError for one that is wrong."""
    profiles: dict[str, Profile] = {}
    files = importlib.resources.files(f"autoft.profiles.{folder}").iterdir()
    for file in sorted(files, key=lambda file: file.name.removesuffix(".toml")):
        if file.name.endswith(".toml"):
            where = f"profiles/{folder}/{file.name}"
            profile = cls.from_toml(file.read_text(encoding="utf-8"), where=where)
            if f"{profile.name}.toml" != file.name:
                raise FileFormatError(f"{where}: name = {profile.name!r}", fix="name the file after it")
            profiles[profile.name] = profile
    return profiles
