"""Which GPUs are known by name, and by which names?"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from autoft.errors import OptionError, near
from autoft.profiles.capability import BF16_SINCE
from autoft.profiles.catalogue import Figure, load, shelf
from autoft.schema import Record

# What a figure can be at all, from the smallest board to the largest module: a slipped unit falls outside.
SANE = {
    "memory_gib": (1, 1024, "GiB"),
    "total_bytes": (2**29, 2**40, "bytes"),
    "multiprocessors": (1, 1000, "multiprocessors"),
    "memory_bytes_per_s": (10e9, 50e12, "bytes a second"),
    "nvlink_bytes_per_s": (10e9, 10e12, "bytes a second"),
    "tdp_w": (5, 5000, "watts"),
}
SANE_FLOPS = (10e9, 100e15, "operations a second")

BRANDS = frozenset({"nvidia", "geforce", "tesla", "amd", "gpu"})
# Words that people leave out. More than one card may be left then, and the answer is a question.
OPTIONAL = frozenset(
    {"rtx", "gtx", "rx", "quadro", "radeon", "instinct", "jetson", "dgx", "ada", "blackwell", "generation", "edition"}
    | {"sxm", "sxm2", "sxm4", "sxm5", "sxm6", "pcie", "nvl", "oam", "hbm2", "hbm2e", "hbm3", "hbm3e"}
)
SYNONYMS = {"super": "s", "laptop": "mobile"}
SIZE = re.compile(r"(\d+)(?:gb|g)")
MOST_CHOICES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PcieLink(Record):
    """The card's own end of the link, at its best: a slot may give less."""

    generation: int
    lanes: int
    source: str
    basis: str = "as the card is built"

    def __post_init__(self) -> None:
        if not 1 <= self.generation <= 8 or self.lanes not in (1, 2, 4, 8, 16):
            raise ValueError("generation is 1 to 8, lanes 1 to 16")
        if not self.basis.strip() or not self.source.strip():
            raise ValueError("basis and source must say something")


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProfile(Record):
    """One card of the catalogue; a figure that no document gives is left out.

    name: the catalogue's name; product: what the driver calls the card; aliases: other ways to ask for it.
    compute_capability: (major, minor), NVIDIA's cards only. bf16: native bfloat16; left out, it follows from that.
    unified_memory: the memory is the host's too, so less of it is free.
    memory_gib: the size it is sold with. total_bytes: what NVML reports, or CUDA where NVML does not; a little less on
    many cards.
    multiprocessors: how many (AMD: compute units), where it decides which kernels are chosen.
    Operations a second are dense, never sparse:
    half_flops_per_s: 16-bit matrix throughput with 32-bit accumulation, on tensor cores where there are any.
    float32_flops_per_s, float16_flops_per_s: arithmetic without tensor cores.
    tf32_flops_per_s, fp8_flops_per_s: tensor cores with 32-bit accumulation. int8_ops_per_s: tensor cores or DP4A.
    nvlink_bytes_per_s: to all its neighbours together, both directions.
    tdp_w: the power it is made for; a laptop's maker chooses within a range, and the top of it stands here.
    """

    name: str
    product: str
    memory_gib: Figure
    vendor: Literal["nvidia", "amd"] = "nvidia"
    compute_capability: tuple[int, int] | None = None
    bf16: bool | None = None
    unified_memory: bool = False
    aliases: tuple[str, ...] = ()
    multiprocessors: Figure | None = None
    total_bytes: Figure | None = None
    half_flops_per_s: Figure | None = None
    float32_flops_per_s: Figure | None = None
    float16_flops_per_s: Figure | None = None
    tf32_flops_per_s: Figure | None = None
    fp8_flops_per_s: Figure | None = None
    int8_ops_per_s: Figure | None = None
    memory_bytes_per_s: Figure | None = None
    pcie: PcieLink | None = None
    nvlink_bytes_per_s: Figure | None = None
    tdp_w: Figure | None = None

    def __post_init__(self) -> None:
        if (self.vendor == "nvidia") != (self.compute_capability is not None):
            raise ValueError("compute_capability belongs to a card of vendor nvidia, and to none of vendor amd")
        if self.compute_capability is not None and not (1, 0) <= self.compute_capability <= (99, 0):
            raise ValueError(f"compute_capability = {list(self.compute_capability)} is none")
        for name, figure in self.figures().items():
            lowest, highest, unit = SANE.get(name, SANE_FLOPS)
            if not lowest <= figure.value <= highest:
                raise ValueError(f"{name} = {figure.value:g}: {unit} are between {lowest:g} and {highest:g}")

    def figures(self) -> dict[str, Figure]:
        """The figures that the card has, by field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: figure for name, figure in values.items() if isinstance(figure, Figure)}

    @property
    def memory_bytes(self) -> int:
        """NVML's total where it is known, else the size the card is sold with."""
        return int(self.total_bytes.value) if self.total_bytes else int(self.memory_gib.value * 2**30)

    @property
    def native_bf16(self) -> bool:
        """Whether bfloat16 is computed natively. Emulation does not count."""
        if self.bf16 is not None:
            return self.bf16
        return self.compute_capability is not None and self.compute_capability >= BF16_SINCE


def gpu_profiles() -> dict[str, GpuProfile]:
    """All cards by name. Raises: FileFormatError for a built-in file that is wrong."""
    return load("gpus", GpuProfile)


def find_gpu(name: str) -> GpuProfile:
    """The card that a person calls `name`: "rtx4090", "RTX 4090" and "NVIDIA GeForce RTX 4090" are one.

    The catalogue's own name is always one card: "rtx-3080" is that of 10 GiB, "RTX 3080" could be two.
    Raises: OptionError, with the choices where the name fits several, else with the names most like it.
    """
    exact = gpu_profiles().get(name)
    if exact is not None:
        return exact
    profiles = candidates(name)
    if len(profiles) == 1:
        return profiles[0]
    if not profiles:
        profiles = tuple(_with_words(name))
        if len(profiles) <= 1:
            close = near(_without_brand(name).replace(" ", "-"), gpu_profiles())
            hint = f" Did you mean {profiles[0].name}?" if profiles else close
            raise OptionError(f"no GPU {name!r} in the catalogue.{hint}", fix="autoft profiles gpus lists them")
    raise OptionError(f"GPU {name!r} could be {_choices(profiles)}", fix="name one of them")


def candidates(name: str) -> tuple[GpuProfile, ...]:
    """The cards that may be meant by `name`, none if it is unknown. The user's own go before the built-in ones."""
    known = _known()
    spelling = _spelling(name)
    return _own_first(known.exact.get(spelling, ())) or _own_first(known.loose.get(spelling, ()))


def gpu_for(name: str, total_bytes: int) -> GpuProfile | None:
    """The card that the driver calls `name` and whose memory comes closest to `total_bytes`, None if not known.

    One name may stand for two cards (RTX 3080 of 10 and of 12 GiB): only the memory tells them apart. The user's own
    go before the built-in ones.
    """
    known = _known()
    spelling = _spelling(name)
    profiles = _own_first(known.products.get(spelling, ())) or _own_first(known.loose.get(spelling, ()))
    distances = sorted((abs(profile.memory_bytes - total_bytes), profile.name) for profile in profiles)
    if not distances or (len(distances) > 1 and distances[0][0] == distances[1][0]):
        return None
    return gpu_profiles()[distances[0][1]]


def _own_first(profiles: tuple[GpuProfile, ...]) -> tuple[GpuProfile, ...]:
    own = shelf("gpus", GpuProfile).own
    return tuple(profile for profile in profiles if profile.name in own) or profiles


@dataclass(frozen=True, slots=True)
class _Spellings:
    """Cards by spelling. exact: a name, an alias or the driver's name; loose: with words left out."""

    products: dict[str, tuple[GpuProfile, ...]]
    exact: dict[str, tuple[GpuProfile, ...]]
    loose: dict[str, tuple[GpuProfile, ...]]


def _known() -> _Spellings:
    return _spellings(tuple(gpu_profiles().values()))


@functools.lru_cache(maxsize=4)
def _spellings(profiles: tuple[GpuProfile, ...]) -> _Spellings:
    products: dict[str, tuple[GpuProfile, ...]] = {}
    exact: dict[str, tuple[GpuProfile, ...]] = {}
    loose: dict[str, tuple[GpuProfile, ...]] = {}
    for profile in profiles:
        own = {_spelling(profile.product)}
        for spelled, table in ((own, products), (_full_spellings(profile), exact), (_variants(profile), loose)):
            for spelling in spelled:
                table[spelling] = (*table.get(spelling, ()), profile)
    return _Spellings(products=products, exact=exact, loose=loose)


def _full_spellings(profile: GpuProfile) -> set[str]:
    """Its aliases, and its name if that tells the size: "RTX 3080" is also the card of 12 GiB, "A100 80" only one."""
    words = _words(profile.name)
    sized = any(SIZE.fullmatch(word) for word in words)
    parts = [_sizes(profile)[1:] if SIZE.fullmatch(word) else (word,) for word in words]
    named = {"".join(combination) for combination in itertools.product(*parts)} if sized else set()
    return named | {_spelling(name) for name in profile.aliases}


def _sizes(profile: GpuProfile) -> tuple[str, ...]:
    """Ways to write a card's memory, nothing among them."""
    size = f"{profile.memory_gib.value:g}"
    return ("", size, f"{size}g", f"{size}gb", f"{size}gib")


def _variants(profile: GpuProfile) -> set[str]:
    """Every way to write a card: its names, with and without the words and the size that people leave out."""
    sizes = _sizes(profile)
    spellings: set[str] = set()
    for name in (profile.name, profile.product, *profile.aliases):
        words = _words(name)
        if not any(SIZE.fullmatch(word) for word in words):
            at = words.index("laptop") if "laptop" in words else len(words)
            spellings |= _combined((*words[:at], sizes[3], *words[at:]), sizes)
        spellings |= _combined((*(w for w in words if not SIZE.fullmatch(w)), *filter(SIZE.fullmatch, words)), sizes)
        spellings |= _combined(words, sizes)
    return spellings


def _combined(words: Iterable[str], sizes: tuple[str, ...]) -> set[str]:
    parts = []
    for word in words:
        if SIZE.fullmatch(word):
            parts.append(sizes)
        elif word in OPTIONAL:
            parts.append(("", word))
        elif word in SYNONYMS:
            parts.append((word, SYNONYMS[word]))
        else:
            parts.append((word,))
    return {"".join(combination) for combination in itertools.product(*parts)} - {""}


def _with_words(name: str) -> list[GpuProfile]:
    """The cards with every word of `name` in their names: all laptop cards for "laptop"."""
    wanted = set(_words(name))
    return [p for p in gpu_profiles().values() if wanted and wanted <= {*_words(p.name), *_words(p.product)}]


def _choices(profiles: Iterable[GpuProfile]) -> str:
    shown = [f"{profile.name} ({profile.memory_gib.value:g} GiB)" for profile in profiles]
    if len(shown) > MOST_CHOICES:
        return f"{', '.join(shown[:MOST_CHOICES])} or {len(shown) - MOST_CHOICES} others"
    return f"{', '.join(shown[:-1])} or {shown[-1]}"


def _words(name: str) -> tuple[str, ...]:
    words = re.findall(r"[a-z0-9]+", name.casefold())
    return tuple(word for word in words if word not in BRANDS)


def _spelling(name: str) -> str:
    """What is left of a card's name when brand, spaces, dashes and capitals do not count: "rtx4090"."""
    return "".join(_words(name))


def _without_brand(name: str) -> str:
    return " ".join(_words(name))
