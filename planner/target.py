"""The Target: the one device that a plan is for, and what it has to give."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from autoft.errors import OptionError
from autoft.planner.time import Rates, bench_rates, cpu_rates, gpu_rates, measure_cpu_bandwidth
from autoft.profiles.bench_store import Bench, BenchKey, cpu_key, gpu_key, kept
from autoft.profiles.detect import UNIFIED_FREE, gpu_from_profile
from autoft.profiles.gpu_catalogue import candidates, gpu_for
from autoft.profiles.hardware import Gpu, Hardware
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import Dtype
from autoft.units import GIB, MIB, size

# Assumptions. A CUDA context takes a few hundred MiB. A CPU's memory is shared with everything else that runs.
CUDA_CONTEXT_BYTES = 512 * MIB
RAM_USABLE = 0.85
# Of what is reserved, kept free besides: the worst of 25 runs that others measured reserved 6.04 % more than predicted
# (benchmarks/results/measured_runs.json; a test compares).
GPU_MARGIN = 0.07
# By compute capability, measured: nvidia-smi's figure less what PyTorch reserved, the same 147,718,144 bytes in 20 runs
# on a Tesla T4 (torch 2.14, CUDA 13.0; sdist of fitcheck-llm 0.3.1, data/measurements/).
MEASURED_CONTEXT_BYTES = {(7, 5): 147_718_144}


_bandwidth = functools.cache(measure_cpu_bandwidth)


@dataclass(frozen=True, slots=True)
class Target:
    """device: where to train. available_bytes: what a run may take of it. half_dtype: its true 16-bit format, if any.

    cpu_flops_per_s, cpu_bytes_per_s: measure the CPU's throughput, for a model in a dtype, and its memory's.
    bench: what `autoft probe --bench` has measured of this device with the software that is installed now.
    key: of this machine's device with that software; None for a card that is not here.
    """

    device: Literal["cuda", "cpu"]
    name: str
    available_bytes: int
    half_dtype: Dtype | None
    gpu: Gpu | None = None
    cpu_flops_per_s: Callable[[Dtype, ModelShape], float] | None = None
    cpu_bytes_per_s: Callable[[], tuple[float, float]] = _bandwidth
    bench: Bench | None = None
    key: BenchKey | None = None

    def rates(self, dtypes: Iterable[Dtype], shape: ModelShape | None) -> Rates:
        """What the device does in a second. dtypes: of the products that are asked for."""
        rates = gpu_rates(self.gpu) if self.gpu is not None else self._cpu_rates(dtypes, shape)
        if self.bench is None:
            return rates
        return bench_rates(rates, self.bench, shape.hidden_size if shape else None)

    @property
    def measures_now(self) -> bool:
        """Whether planning itself measures something: a CPU's throughput where no bench tells it."""
        told = [self._benched("product", dtype) for dtype in ("float32", "bfloat16", "float16")]
        return self.gpu is None and None in (*told, self._benched("memory"), self._benched("new pages"))

    def _cpu_rates(self, dtypes: Iterable[Dtype], shape: ModelShape | None) -> Rates:
        flops = {dtype: self._benched("product", dtype) or self._measured_now(dtype, shape) for dtype in dtypes}
        in_pieces, at_once = self._benched("memory"), self._benched("new pages")
        return cpu_rates(flops, (in_pieces, at_once) if in_pieces and at_once else self.cpu_bytes_per_s())

    def _benched(self, what: str, dtype: str = "") -> float | None:
        found = self.bench.find(what, dtype) if self.bench else ()
        return found[0].median if found else None

    def _measured_now(self, dtype: Dtype, shape: ModelShape | None) -> float:
        assert self.cpu_flops_per_s is not None
        return self.cpu_flops_per_s(dtype, shape)  # type: ignore[arg-type]

    def device_bytes(self, reserved_bytes: int) -> int:
        """What a run that reserves so much takes of the device in all."""
        if self.gpu is None:
            return reserved_bytes
        return reserved_bytes + MEASURED_CONTEXT_BYTES.get(self.gpu.compute_capability or (0, 0), CUDA_CONTEXT_BYTES)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the memory figures take for granted."""
        if self.gpu is None:
            return ("memory: tensors of the step; libraries and the allocator's own share come on top on a CPU",)
        margin = f"memory: {GPU_MARGIN:.0%} is kept free: of 25 measured runs the worst took 6% more than predicted"
        if self.gpu.compute_capability in MEASURED_CONTEXT_BYTES:
            return (margin,)
        notes = [
            margin,
            f"memory: a CUDA context of {size(CUDA_CONTEXT_BYTES)} is assumed, not measured, for this card",
        ]
        if self.gpu.origin == "profile" and self.gpu.compute_capability is None:
            notes.append(
                "memory: the rules are those of CUDA's kernels and allocator; on AMD cards nothing was measured"
            )
        if self.gpu.origin == "profile" and self.gpu.free_bytes < self.gpu.total_bytes:
            notes.append(f"memory: shared with the host, of which {UNIFIED_FREE:.0%} is assumed to be free")
        return tuple(notes)


def target_of(
    hardware: Hardware,
    *,
    gpu_name: str | None,
    vram_gib: float | None,
    cpu_flops_per_s: Callable[[Dtype, ModelShape], float],
) -> Target:
    """The device to plan for: the card named, else the GPU here with the most free memory, else the CPU.

    gpu_name: a catalogue name, or "cpu". vram_gib: overrides the memory, in GiB.
    Raises: OptionError.
    """
    if vram_gib is not None and not 0 < vram_gib <= 4096:
        raise OptionError(f"--vram {vram_gib:g} is not a GPU's memory", fix="give GiB between 0 and 4096")
    gpu = _gpu(hardware, gpu_name, vram_gib)
    if gpu is not None:
        return _of_gpu(gpu, hardware.driver_version)
    host = hardware.host
    ram = int(vram_gib * GIB) if vram_gib is not None else host.ram_available_bytes
    name = f"CPU ({host.cpu}, {host.cores} cores, {size(ram)} free)"
    return Target(
        "cpu",
        name,
        int(ram * RAM_USABLE),
        "bfloat16" if host.bf16 else None,
        cpu_flops_per_s=cpu_flops_per_s,
        bench=kept(cpu_key(host)),
        key=cpu_key(host),
    )


def target_of_profile(name: str) -> Target:
    """A card of the catalogue, idle. Raises: OptionError for a name that it does not know."""
    return _of_gpu(gpu_from_profile(name), None)


def _of_gpu(gpu: Gpu, driver_version: str | None) -> Target:
    half: Dtype = "bfloat16" if gpu.bf16 else "float16"
    name, usable = f"{gpu.name} ({size(gpu.total_bytes)})", usable_bytes(gpu.free_bytes)
    key = gpu_key(gpu, driver_version)
    return Target("cuda", name, usable, half, gpu=gpu, bench=kept(key), key=key)


def usable_bytes(free_bytes: int) -> int:
    """What a run may take of a card's free memory: all but the margin."""
    return max(0, CUDA_CONTEXT_BYTES + int((free_bytes - CUDA_CONTEXT_BYTES) / (1 + GPU_MARGIN)))


def _gpu(hardware: Hardware, gpu_name: str | None, vram_gib: float | None) -> Gpu | None:
    if gpu_name == "cpu":
        return None
    if gpu_name is not None:
        gpu = gpu_from_profile(_single(gpu_name))
    elif hardware.gpus:
        gpu = with_data_sheet(max(hardware.gpus, key=lambda gpu: gpu.free_bytes))
    elif vram_gib is not None:
        gpu = Gpu(name="a GPU", origin="user", total_bytes=0, free_bytes=0, compute_capability=(8, 0), bf16=True)
    else:
        return None
    if vram_gib is not None:
        gpu = replace(gpu, total_bytes=int(vram_gib * GIB), free_bytes=int(vram_gib * GIB))
    return gpu


def _single(gpu_name: str) -> str:
    """The card's name without a count of one ("t4x1"). Raises: OptionError for several cards."""
    cards = [word.strip() for word in gpu_name.split(",") if word.strip()]
    if len(cards) > 1:
        choices = " or ".join(f"--gpu {card}" for card in dict.fromkeys(cards))
        raise OptionError(f"--gpu {gpu_name}: autoft trains on one GPU today", fix=choices)
    for form in (r"(?P<name>.+?)\s*x\s*(?P<count>\d{1,2})", r"(?P<count>\d{1,2})\s*x\s*(?P<name>.+)"):
        match = re.fullmatch(form, gpu_name)
        if match is not None and candidates(match["name"]):
            if match["count"] != "1":
                raise OptionError(f"--gpu {gpu_name}: autoft trains on one GPU today", fix=f"--gpu {match['name']}")
            return match["name"]
    return gpu_name


def with_data_sheet(gpu: Gpu) -> Gpu:
    """A card of this machine with the catalogue's throughput, where the catalogue knows it."""
    profile = gpu_for(gpu.name, gpu.total_bytes)
    if profile is None:
        return gpu
    known = gpu_from_profile(profile.name)
    return replace(
        gpu,
        multiprocessors=known.multiprocessors,
        half_flops_per_s=known.half_flops_per_s,
        float32_flops_per_s=known.float32_flops_per_s,
        memory_bytes_per_s=known.memory_bytes_per_s,
        tdp_w=known.tdp_w,
        profile=profile.name,
    )
