"""Which GPUs are known by name, and by which names?"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from autoft.errors import OptionError, near
from autoft.profiles.catalogue import Figure, load
from autoft.schema import Record


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


@functools.cache
def gpu_profiles() -> dict[str, GpuProfile]:
    """All cards by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return load("gpus", GpuProfile)


def find_gpu(name: str) -> GpuProfile:
    """The card called `name`: "rtx4090", "RTX 4090" and "NVIDIA GeForce RTX 4090" are one.

    Raises: OptionError with the names most like it.
    """
    profile = _gpus_by_spelling().get(_spelling(name))
    if profile is None:
        hint = near(_without_brand(name).replace(" ", "-"), gpu_profiles())
        raise OptionError(f"no GPU {name!r} in the catalogue.{hint}", fix="autoft profiles gpus lists them")
    return profile


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
