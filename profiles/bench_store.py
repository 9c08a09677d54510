"""What was measured of this machine, kept in AUTOFT_HOME/bench: one file a device and its software. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.home import home, write_text
from autoft.profiles.hardware import Gpu, Host
from autoft.profiles.host import installed_version
from autoft.schema import Record

# Changed when the same words come to mean another measurement: what was kept before is then no longer used
EDITION = "1"
LIBRARIES = ("torch", "bitsandbytes")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FLOPS, BYTES = "FLOP/s", "bytes/s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading(Record):
    """One thing measured: `median` of `repeats` in `unit`, between `least` and `most`.

    what: "product", "attention" (forward and backward), "unpack" (4-bit weights to 16 or 32 bits), "4-bit product",
    "copy", "memory" (kernels in the cache's reach of allocation), "new pages", "adamw", "to device", "from device",
    "disk read", "disk write". dtype: of the arithmetic, "" where there is none. shape: its sizes, product: tokens,
    inner, outer; attention: batch, heads, tokens, width of a head. note: how it was done, where that matters.
    """

    what: str
    unit: str
    median: float
    least: float
    most: float
    repeats: int
    dtype: str = ""
    shape: tuple[int, ...] = ()
    note: str = ""

    @property
    def unsteady(self) -> bool:
        """Whether half of the repeats were slower by a third than the quickest: something else was at work."""
        return self.most > 1.5 * self.median


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchKey(Record):
    """What a bench holds for, and nothing else: this device with this software.

    device: the GPU's UUID, or the processor's model. circumstances: versions, and what sets the number of threads.
    """

    device: str
    name: str
    circumstances: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench(Record):
    """date: when, ISO, UTC. left_out: what was not measured, each with its reason."""

    key: BenchKey
    date: str
    readings: tuple[Reading, ...]
    left_out: tuple[str, ...] = ()

    def find(self, what: str, dtype: str = "") -> tuple[Reading, ...]:
        """The readings of one thing in one dtype, smallest shape first."""
        readings = [reading for reading in self.readings if (reading.what, reading.dtype) == (what, dtype)]
        return tuple(sorted(readings, key=lambda reading: reading.shape))


def gpu_key(gpu: Gpu, driver_version: str | None) -> BenchKey | None:
    """The key of a card of this machine, by its place where it tells no UUID; None for one of the catalogue."""
    if gpu.origin in ("profile", "user"):
        return None
    return BenchKey(
        device=gpu.uuid or f"gpu {gpu.index}",
        name=gpu.name,
        circumstances={"driver": driver_version or "", **_software()},
    )


def cpu_key(host: Host) -> BenchKey:
    """The key of this machine's processor, with the cores and threads that a run may use."""
    threads = {name: os.environ.get(name, "") for name in THREADS}
    return BenchKey(
        device=f"cpu {host.cpu}", name=host.cpu, circumstances={"cores": str(host.cores), **threads, **_software()}
    )


def kept(key: BenchKey | None) -> Bench | None:
    """The bench kept for just this key; None where there is none, or where the file is damaged or of another key."""
    if key is None:
        return None
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        entry = json.loads(_path(key).read_text(encoding="utf-8"))
        if entry["sha256"] == _digest(entry["bench"]):
            bench = _bench(entry["bench"])
            return bench if bench.key == key else None
    return None


def keep(bench: Bench) -> Path:
    """Keep it, in place of what was kept for the same key. Raises: OSError where AUTOFT_HOME cannot be written to."""
    path, data = _path(bench.key), bench.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"sha256": _digest(data), "bench": data}, indent=1, ensure_ascii=False))
    return path


def folder() -> Path:
    """Where benches are kept."""
    return home() / "bench"


def _bench(data: dict[str, Any]) -> Bench:
    """Checked by hand: pydantic would double the time of `autoft probe`. Raises: ValueError, KeyError, TypeError."""
    key = BenchKey(**data["key"])
    readings = tuple(Reading(**{**reading, "shape": tuple(reading["shape"])}) for reading in data["readings"])
    bench = Bench(key=key, date=data["date"], readings=readings, left_out=tuple(data["left_out"]))
    for reading in readings:
        check(reading)
    if not (readings and re.fullmatch(r"\d{4}-\d\d-\d\d", bench.date)):
        raise ValueError("no readings, or no date")
    return bench


def check(reading: Reading) -> Reading:
    """The reading, if it can be one. Raises: ValueError."""
    figures = (reading.least, reading.median, reading.most)
    if not all(type(figure) is float and math.isfinite(figure) and figure > 0 for figure in figures):
        raise ValueError(f"{reading.what}: a figure that none can be")
    if not (reading.least <= reading.median <= reading.most and reading.repeats >= 1):
        raise ValueError(f"{reading.what}: its median is not between least and most")
    if reading.unit not in (FLOPS, BYTES) or not all(type(size) is int for size in reading.shape):
        raise ValueError(f"{reading.what}: unit or shape")
    return reading


def _software() -> dict[str, str]:
    """Versions by metadata, nothing imported."""
    return {"bench": EDITION, **{library: installed_version(library) or "" for library in LIBRARIES}}


def _path(key: BenchKey) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", key.name.lower()).strip("-")[:40]
    return folder() / f"{words}-{_digest(key.to_dict())[:16]}.json"


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
