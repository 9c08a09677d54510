"""Which GPUs and models are known by name? One TOML file each, every figure with its basis and its source."""

from __future__ import annotations

import functools
import importlib.resources
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from autoft.errors import FileFormatError, OptionError, near
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


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProfile(Record):
    """One card of the catalogue; a figure that no document gives is left out.

    name: the catalogue's name; product: what the driver calls the card; aliases: other ways to ask for it.
    memory_gib: the size it is sold with. total_bytes: what NVML reports, a little less on many cards.
    multiprocessors: how many, where it decides which kernels are chosen.
    half_flops_per_s: dense 16-bit matrix throughput with 32-bit accumulation.
    float32_flops_per_s: throughput in float32 without tensor cores, of which TF32 would be another figure.
    """

    name: str
    product: str
    compute_capability: tuple[int, int]
    memory_gib: Figure
    aliases: tuple[str, ...] = ()
    multiprocessors: Figure | None = None
    total_bytes: Figure | None = None
    half_flops_per_s: Figure | None = None
    float32_flops_per_s: Figure | None = None
    memory_bytes_per_s: Figure | None = None
    tdp_w: Figure | None = None

    @property
    def memory_bytes(self) -> int:
        """NVML's total where it is known, else the size the card is sold with."""
        return int(self.total_bytes.value) if self.total_bytes else int(self.memory_gib.value * 2**30)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile(Record):
    """One model of the catalogue. config: its config.json; gated: the hub asks for an accepted licence first."""

    name: str
    hub_id: str
    licence: str
    gated: bool
    source: str
    config: dict[str, Any]


@functools.cache
def gpu_profiles() -> dict[str, GpuProfile]:
    """All cards by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return _load("gpus", GpuProfile)


@functools.cache
def model_profiles() -> dict[str, ModelProfile]:
    """All models by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return _load("models", ModelProfile)


def find_gpu(name: str) -> GpuProfile:
    """The card called `name`: "rtx4090", "RTX 4090" and "NVIDIA GeForce RTX 4090" are one.

    Raises: OptionError with the names most like it.
    """
    profile = _gpus_by_spelling().get(_spelling(name))
    if profile is None:
        hint = near(_without_brand(name).replace(" ", "-"), gpu_profiles())
        raise OptionError(f"no GPU {name!r} in the catalogue.{hint}", fix="autoft profiles gpus lists them")
    return profile


def find_model(name: str) -> ModelProfile | None:
    """The model with that catalogue name or hub id, None if there is none: it may still be a folder or on the hub."""
    wanted = name.casefold()
    return next((m for m in model_profiles().values() if wanted in (m.name.casefold(), m.hub_id.casefold())), None)


Profile = TypeVar("Profile", GpuProfile, ModelProfile)


def _load(folder: str, cls: type[Profile]) -> dict[str, Profile]:
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


@functools.cache
def _gpus_by_spelling() -> dict[str, GpuProfile]:
    return {
        _spelling(name): profile
        for profile in gpu_profiles().values()
        for name in (profile.name, profile.product, *profile.aliases)
    }


def _spelling(name: str) -> str:
    """What is left of a card's name when brand, spaces, dashes and capitals do not count: "rtx4090"."""
    return re.sub(r"[^a-z0-9]", "", _without_brand(name))


def _without_brand(name: str) -> str:
    return re.sub(r"\b(nvidia|geforce|tesla)\b", "", name.casefold()).strip()
