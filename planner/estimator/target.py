"""The Target: the one device that a plan is for, and what it has to give."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoft.errors import OptionError
from autoft.planner.facts import Assumption
from autoft.planner.request import Request
from autoft.planner.timing.allreduce import Network
from autoft.planner.timing.gpu_rates import gpu_rates
from autoft.planner.timing.network import network_link
from autoft.planner.timing.roofline import Rates, bench_rates, cpu_rates, measure_cpu_bandwidth, measure_cpu_flops
from autoft.profiles.architectures import architecture
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
# Of what is reserved, kept free besides: twice the most by which our trainer passed its prediction on a described card
# (benchmarks/results/described_cards.json; a test compares; docs/decisions/0018-memory-margin.md).
GPU_MARGIN = 0.03
# Assumption: what NCCL takes for its channels beside PyTorch's allocator, the more of two figures that were measured on
# A100s with NVLink: 544 MB a GPU in a group of two, 688 MB in a larger one (github.com/NVIDIA/nccl, issue 964).
NCCL_BYTES = 688 * MIB
NCCL_SOURCE = "github.com/NVIDIA/nccl, issue 964"
# Measured contexts are in profiles/architectures.toml: nvidia-smi's figure less what PyTorch reserved, the same
# 147,718,144 bytes in 20 runs on a Tesla T4 (torch 2.14, CUDA 13.0; sdist of fitcheck-llm 0.3.1, data/measurements/).
RAM_ONLY = Assumption(
    kind="memory",
    basis="rehearsal",
    text="memory: tensors of the step; libraries and the allocator's own share come on top on a CPU",
)
WORST_MISS = 0.014  # of our runs on described cards: what one took more than predicted
MARGIN = Assumption(
    kind="memory",
    basis="measured",
    text=f"memory: {GPU_MARGIN:.0%} is kept free as a margin (worst miss of our runs on described cards: "
    f"{WORST_MISS:.1%})",
    figures={"margin": GPU_MARGIN, "worst_miss": WORST_MISS},
)
CONTEXT = Assumption(
    kind="context",
    basis="assumption",
    text=f"memory: a CUDA context of {size(CUDA_CONTEXT_BYTES)} is assumed, not measured, for this card",
    figures={"context_bytes": CUDA_CONTEXT_BYTES},
)
NOT_CUDA = Assumption(
    kind="memory",
    basis="assumption",
    text="memory: the rules are those of CUDA's kernels and allocator; on AMD cards nothing was measured",
)
UNIFIED = Assumption(
    kind="memory",
    basis="assumption",
    text=f"memory: shared with the host; {UNIFIED_FREE:.0%} is assumed to be free",
    figures={"free_share": UNIFIED_FREE},
)


_bandwidth = functools.cache(measure_cpu_bandwidth)


@dataclass(frozen=True, slots=True)
class Target:
    """device: where to train. name: for people, with its memory; card: without, the same whenever it is asked.
    available_bytes: what a run may take of it. half_dtype: its true 16-bit format, if any.

    cpu_flops_per_s, cpu_bytes_per_s: measure the CPU's throughput, for a model in a dtype, and its memory's.
    gpu: the card, of several the one that has the least to give; gpus: all that are alike on the machine, the one with
    the most free memory first.
    bench: what `autoft probe --bench` has measured of this device with the software that is installed now.
    key: of this machine's device with that software; None for a card that is not here.
    ram_bytes: of the host, free beside a GPU; None for a card that is not here.
    network: to other machines like this one that train with it.
    """

    device: Literal["cuda", "cpu"]
    name: str
    card: str
    available_bytes: int
    half_dtype: Dtype | None
    gpu: Gpu | None = None
    gpus: tuple[Gpu, ...] = ()
    cpu_flops_per_s: Callable[[Dtype, ModelShape], float] | None = None
    cpu_bytes_per_s: Callable[[], tuple[float, float]] = _bandwidth
    bench: Bench | None = None
    key: BenchKey | None = None
    ram_bytes: int | None = None
    network: Network | None = None

    def rates(self, dtypes: Iterable[Dtype], shape: ModelShape | None) -> Rates:
        """What the device does in a second. dtypes: of the products that are asked for."""
        rates = gpu_rates(self.gpu) if self.gpu is not None else self._cpu_rates(dtypes, shape)
        if self.bench is None:
            return rates
        return bench_rates(rates, self.bench, shape.hidden_size if shape else None)

    @property
    def measures_now(self) -> bool:
        """Whether planning itself measures something: a CPU's throughput where no bench tells it."""
        readings = [self._benched("product", dtype) for dtype in ("float32", "bfloat16", "float16")]
        return self.gpu is None and None in (*readings, self._benched("memory"), self._benched("new pages"))

    def _cpu_rates(self, dtypes: Iterable[Dtype], shape: ModelShape | None) -> Rates:
        flops = {dtype: self._benched("product", dtype) or self._measured_now(dtype, shape) for dtype in dtypes}
        in_pieces, at_once = self._benched("memory"), self._benched("new pages")
        return cpu_rates(flops, (in_pieces, at_once) if in_pieces and at_once else self.cpu_bytes_per_s())

    def _benched(self, what: str, dtype: str = "") -> float | None:
        readings = self.bench.find(what, dtype) if self.bench else ()
        return readings[0].median if readings else None

    def _measured_now(self, dtype: Dtype, shape: ModelShape | None) -> float:
        assert self.cpu_flops_per_s is not None
        return self.cpu_flops_per_s(dtype, shape)  # type: ignore[arg-type]

    @property
    def hosts(self) -> int:
        return self.network.hosts if self.network is not None else 1

    @property
    def num_gpus(self) -> int:
        """How many replicas of a model have a device of their own, on all hosts; a CPU counts as one."""
        return self.hosts * max(1, len(self.gpus))

    def on_each_host(self, num_gpus: int) -> int:
        """How many of `num_gpus` replicas a host has."""
        return max(1, num_gpus // self.hosts)

    def using(self, num_gpus: int) -> Target:
        """The same with so many of its GPUs, of which each has as much to give as the one that has least."""
        if num_gpus == 1 or not self.gpus:
            return self
        gpu = self.gpus[self.on_each_host(num_gpus) - 1]
        return replace(self, gpu=gpu, available_bytes=usable_bytes(gpu.free_bytes))

    def device_bytes(self, reserved_bytes: int, num_gpus: int = 1) -> int:
        """What a run that reserves so much takes of the device in all, or of each of so many GPUs.

        Several replicas on a CPU share its memory.
        """
        if self.gpu is None:
            return self.on_each_host(num_gpus) * reserved_bytes
        context = _measured_context_bytes(self.gpu) or CUDA_CONTEXT_BYTES
        return reserved_bytes + context + (NCCL_BYTES if num_gpus > 1 else 0)

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What the memory figures take for granted."""
        if self.gpu is None:
            return (RAM_ONLY,)
        records = [MARGIN]
        if _measured_context_bytes(self.gpu) is None:
            records.append(CONTEXT)
            if self.gpu.origin == "profile" and self.gpu.compute_capability is None:
                records.append(NOT_CUDA)
            if self.gpu.origin == "profile" and self.gpu.free_bytes < self.gpu.total_bytes:
                records.append(UNIFIED)
        return tuple(records)


def _measured_context_bytes(gpu: Gpu) -> int | None:
    return architecture(gpu.compute_capability).context_bytes if gpu.compute_capability else None


def target_of(
    hardware: Hardware,
    *,
    gpu_name: str | None,
    vram_gib: float | None,
    cpu_flops_per_s: Callable[[Dtype, ModelShape], float],
    hosts: int = 1,
    link: str | None = None,
) -> Target:
    """The device to plan for: the card named, else the GPU here with the most free memory, else the CPU.

    Cards here that are like that one belong to it. gpu_name: a catalogue name, with a count where there are to be
    several ("RTX 4090 x2"), or "cpu". vram_gib: overrides the memory, in GiB. hosts: machines like this one, or with as
    many of the cards named. link: between them, as `network_link` has it.
    Raises: OptionError.
    """
    if link is not None and hosts == 1:
        raise OptionError(f"--link {link} is the network between hosts, and there is one", fix="--hosts 2")
    alone = _target_of_host(hardware, gpu_name, vram_gib, cpu_flops_per_s)
    return alone if hosts == 1 else replace(alone, network=Network(hosts, network_link(link)))


def target_of_request(request: Request, hardware: Hardware, *, hosts: int = 1, link: str | None = None) -> Target:
    """As `target_of`, of what the user has asked for. hosts, link: of the job. Raises: OptionError."""
    return target_of(
        hardware,
        gpu_name=request.gpu,
        vram_gib=request.vram_gib,
        cpu_flops_per_s=functools.cache(measure_cpu_flops),
        hosts=hosts,
        link=link,
    )


def _target_of_host(
    hardware: Hardware,
    gpu_name: str | None,
    vram_gib: float | None,
    cpu_flops_per_s: Callable[[Dtype, ModelShape], float],
) -> Target:
    if vram_gib is not None and not 0 < vram_gib <= 4096:
        raise OptionError(f"--vram {vram_gib:g} is not a GPU's memory", fix="give GiB between 0 and 4096")
    gpus = _gpus(hardware, gpu_name, vram_gib)
    if gpus:
        here = gpus[0].origin not in ("profile", "user")
        return replace(
            _of_gpus(gpus, hardware.driver_version),
            ram_bytes=hardware.host.ram_available_bytes if here else None,
        )
    host = hardware.host
    ram = int(vram_gib * GIB) if vram_gib is not None else host.ram_available_bytes
    name = f"CPU ({host.cpu}, {host.cores} cores, {size(ram)} free)"
    return Target(
        "cpu",
        name,
        f"CPU ({host.cpu})",
        int(ram * RAM_USABLE),
        "bfloat16" if host.bf16 else None,
        cpu_flops_per_s=cpu_flops_per_s,
        bench=kept(cpu_key(host)),
        key=cpu_key(host),
    )


def target_of_profile(name: str) -> Target:
    """A card of the catalogue, idle. Raises: OptionError for a name that it does not know."""
    return _of_gpus((gpu_from_profile(name),), None)


def like(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The card with the most free memory, and all that are as it is, in the order of theirs.

    Parts of a card in MIG mode stay alone: NCCL joins no two of them.
    """
    ordered = sorted(gpus, key=lambda gpu: gpu.free_bytes, reverse=True)
    if not ordered or _is_part(ordered[0]):
        return tuple(ordered[:1])
    kind = (ordered[0].name, ordered[0].total_bytes, ordered[0].compute_capability)
    return tuple(g for g in ordered if (g.name, g.total_bytes, g.compute_capability) == kind and not _is_part(g))


def _is_part(gpu: Gpu) -> bool:
    return (gpu.uuid or "").startswith("MIG-")


def _of_gpus(gpus: tuple[Gpu, ...], driver_version: str | None) -> Target:
    gpu = gpus[0]
    half: Dtype = "bfloat16" if gpu.bf16 else "float16"
    name, usable = f"{gpu.name} ({size(gpu.total_bytes)})", usable_bytes(gpu.free_bytes)
    key = gpu_key(gpu, driver_version)
    return Target("cuda", name, gpu.name, usable, half, gpu=gpu, gpus=gpus, bench=kept(key), key=key)


def several(num_gpus: int, name: str, hosts: int = 1) -> str:
    """Two of them are "2 x NVIDIA GeForce RTX 3090"; num_gpus: on all hosts."""
    here = name if num_gpus <= hosts else f"{num_gpus // hosts} x {name}"
    return here if hosts == 1 else f"{hosts} hosts with {here}"


def usable_bytes(free_bytes: int) -> int:
    """What a run may take of a card's free memory: all but the margin."""
    return max(0, CUDA_CONTEXT_BYTES + int((free_bytes - CUDA_CONTEXT_BYTES) / (1 + GPU_MARGIN)))


def _gpus(hardware: Hardware, gpu_name: str | None, vram_gib: float | None) -> tuple[Gpu, ...]:
    """Those to plan for, the one with the most free memory first; none for a CPU."""
    if gpu_name == "cpu":
        return ()
    if gpu_name is not None:
        name, count = named(gpu_name)
        gpus = (gpu_from_profile(name),) * count
    elif hardware.gpus:
        gpus = tuple(with_data_sheet(gpu) for gpu in like(hardware.gpus))
    elif vram_gib is None:
        return ()
    else:
        gpus = (Gpu(name="a GPU", origin="user", total_bytes=0, free_bytes=0, compute_capability=(8, 0), bf16=True),)
    if vram_gib is not None:
        gpus = tuple(replace(gpu, total_bytes=int(vram_gib * GIB), free_bytes=int(vram_gib * GIB)) for gpu in gpus)
    return gpus


def named(gpu_name: str) -> tuple[str, int]:
    """(name of a card, how many) of what --gpu says: "t4", "t4x2", "2x t4", "t4,t4".

    Raises: OptionError for cards that differ, and for none.
    """
    cards = [word.strip() for word in gpu_name.split(",") if word.strip()]
    if len(set(cards)) > 1:
        choices = " or ".join(f"--gpu {card}" for card in dict.fromkeys(cards))
        raise OptionError(f"--gpu {gpu_name}: all GPUs of a run must be of one kind", fix=choices)
    if len(cards) > 1:
        return cards[0], len(cards)
    for form in (r"(?P<name>.+?)\s*x\s*(?P<count>\d{1,2})", r"(?P<count>\d{1,2})\s*x\s*(?P<name>.+)"):
        match = re.fullmatch(form, gpu_name)
        if match is not None and candidates(match["name"]):
            if int(match["count"]) == 0:
                raise OptionError(f"--gpu {gpu_name}: no card at all", fix=f"--gpu {match['name']}, or --gpu cpu")
            return match["name"], int(match["count"])
    return gpu_name, 1


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
