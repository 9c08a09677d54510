"""How long does one training step take? A range: each of its kernels against what the device does in a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from autoft.planner.estimate import Range
from autoft.profiles.bench_store import Bench, Reading
from autoft.profiles.hardware import Gpu
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import Dtype
from autoft.units import MIB

if TYPE_CHECKING:
    import torch

    from autoft.planner.work import Work

Basis = Literal["measured", "data sheet", "assumption"]

# What a step gets of a figure, least and most, by where the figure is from.
# Products: at their best shapes A100 and H100 reach 80 to 86% of the data sheet (stas00/ml-engineering,
# compute/accelerator, table of maximum achievable matmul FLOPS); GeForce cards clock above the boost clock that theirs
# is computed from; a T4 lowers its clock in long products (arXiv:1903.07486). Assumption: with small and skinny ones
# among them a step gets no less than a quarter.
PRODUCTS: dict[Basis, tuple[float, float]] = {"data sheet": (0.25, 1.0), "measured": (0.5, 1.1)}
# Fused attention, of the same figure: 50 to 73% of an A100 with FlashAttention-2 (arXiv:2307.08691), 35% of an H100
# (arXiv:2407.08608). Assumption: older kernels and short sequences get a tenth; on CPUs, whose kernel has less of the
# matrix units, a twentieth.
ATTENTION: dict[Basis, tuple[float, float]] = {"data sheet": (0.1, 0.75), "measured": (0.05, 0.5)}
# Assumption: strided and reducing kernels, and those that do more than multiply, get no less than 45% (on a CPU 35%) of
# what copies do; on the fast side a part of what a kernel reads is still in the cache, where the last one has left it.
MEMORY: dict[Basis, tuple[float, float]] = {"data sheet": (0.45, 1.25), "measured": (0.35, 1.4)}
# Unpacking 4-bit weights is arithmetic on bytes. Assumption: between a quarter and all of the memory's rate.
UNPACK_SHARE = (0.25, 1.0)
# On a CPU a result of 32 MiB or more gets new pages every time: DEFAULT_MMAP_THRESHOLD_MAX of glibc's malloc.c. Its
# kernel moves at least twice that. Measured on one that writes half of what it moves; assumption: of others, which
# write a third or in place, the quickest get two and a half times as much.
NEW_PAGES_BYTES = 2 * 32 * MIB
NEW_PAGES_SHARE = (0.5, 2.5)
# Of what a bench has measured of this very thing, the median of its slowest shape and the best of its quickest: what
# else was at work widens the range. Products and a CPU's memory as above. Assumptions, met by the 12 steps of
# benchmarks/step_time.py --bench on a CPU; no card's bench was compared with a step on it. A copy on a card is quicker
# than most kernels.
BENCH_MEMORY = (0.5, 1.35)
BENCH_ATTENTION = (0.4, 1.3)
BENCH_UNPACK = (0.5, 1.3)
BENCH_HOST_LINK = (0.6, 1.05)
# Assumptions for a card that no data sheet is known of.
UNKNOWN_HALF = (10e12, 100e12)
UNKNOWN_MEMORY = (200e9, 1000e9)
# Host seconds a kernel. CUDA: one operation issued from Python takes 4.2 us where it is fast, and 5 to 25 us with
# modules, autograd and dispatch around it (jiahuanglin.xyz, From PyTorch op to kernel launch). CPU: the same without
# the driver. Both are assumptions for the machine at hand.
CUDA_LAUNCH_S = Range(lower=3e-6, upper=25e-6)
CPU_LAUNCH_S = Range(lower=2e-6, upper=25e-6)
# PCIe, one direction: 3.0 with 8 lanes to 5.0 with 16 (8, 16 and 32 GT/s a lane, 128/130 encoded). Assumption: at most
# all of it.
HOST_LINK_BYTES_PER_S = (7.9e9, 63e9)
# Of a card's power limit, drawn in a step: an assumption. A card that waits for its host draws little.
POWER_SHARE = (0.3, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """So much a second. lower, upper: of what a step gets. basis: where the figure is from. on: the day of a bench."""

    lower: float
    upper: float
    basis: Basis
    on: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a device does.

    products, attention: FLOP/s by dtype. memory: bytes/s read and written; new_pages: of kernels from NEW_PAGES_BYTES
    on, where that differs. unpack: bytes/s of 4-bit weights and what they become. launch_s: host seconds a kernel.
    runs_ahead: the host launches while the device works. host_link: bytes/s between host and device. power_w: drawn by
    the device in a step; None where it is not known.
    """

    products: dict[str, Rate]
    attention: dict[str, Rate]
    memory: Rate
    unpack: Rate
    launch_s: Range
    runs_ahead: bool
    host_link: Rate
    power_w: Range | None = None
    new_pages: Rate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """step_s: of one micro-batch, forward and backward, and an optimizer step. energy_wh: of the device in it.

    exchange: what several GPUs take to sum their gradients, in words; None for one.
    """

    step_s: Range
    energy_wh: Range | None
    basis: str
    exchange: str | None = None


def step_timing(work: Work, paged_bytes: int, rates: Rates, offloaded_bytes: int = 0) -> Timing:
    """Time and energy of the kernels in `work` on a device of those `rates`.

    A kernel takes the longer of its arithmetic and its traffic. Least: all at the upper rates, launches hidden behind
    them where the host runs ahead. Most: the lower rates, every launch waited for, and all paged state fetched and
    written back. Offloaded checkpoints go to the host and come back in either.
    """
    copied = 2 * offloaded_bytes
    launches = work.total()
    fast, slow = _device_s(work, rates, upper=True), _device_s(work, rates, upper=False)
    launching = launches * rates.launch_s.lower
    step = Range(
        lower=(max(fast, launching) if rates.runs_ahead else fast + launching) + copied / rates.host_link.upper,
        upper=slow + launches * rates.launch_s.upper + (2 * paged_bytes + copied) / rates.host_link.lower,
    )
    power = rates.power_w
    energy = Range(lower=step.lower * power.lower / 3600, upper=step.upper * power.upper / 3600) if power else None
    return Timing(step_s=step, energy_wh=energy, basis=_basis(rates))


def _device_s(work: Work, rates: Rates, *, upper: bool) -> float:
    def of(rate: Rate) -> float:
        return rate.upper if upper else rate.lower

    memory, unpack, new_pages = of(rates.memory), of(rates.unpack), of(rates.new_pages or rates.memory)
    flops = {
        (kind, dtype): of(rate)
        for kind, by_dtype in (("product", rates.products), ("attention", rates.attention))
        for dtype, rate in by_dtype.items()
    }
    total = 0.0
    for kernel, launches in work.items():
        if kernel.kind == "unpack":
            seconds = kernel.moved_bytes / unpack
        else:
            seconds = kernel.moved_bytes / (memory if kernel.moved_bytes < NEW_PAGES_BYTES else new_pages)
        if kernel.flops:
            seconds = max(seconds, kernel.flops / flops[kernel.kind, kernel.dtype])
        total += launches * seconds
    return total


def _short(value: float) -> str:
    """Two digits, and no power of ten."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _basis(rates: Rates) -> str:
    product, memory = max(rates.products.values(), key=lambda rate: rate.upper), rates.memory
    known = {"measured": "measured just now", "data sheet": "from the data sheet", "assumption": "assumed"}
    basis = known[product.basis]
    if product.on is not None:
        least, most = PRODUCTS["measured"]
        basis = f"measured on {product.on}, of which a step is taken to get {least:.0%} to {most:.0%}"
    return (
        f"time: products at {_short(product.lower / 1e12)} to {_short(product.upper / 1e12)} TFLOP/s, memory at "
        f"{_short(memory.lower / 1e9)} to {_short(memory.upper / 1e9)} GB/s, {basis}"
    )


def gpu_rates(gpu: Gpu) -> Rates:
    """Of a card, from its data sheet; from wide assumptions where there is none.

    Without tensor cores for a dtype its products go at the float32 rate: bfloat16 before compute capability 8.0. TF32
    is off in PyTorch unless it is asked for.
    """
    basis: Basis = "data sheet" if gpu.half_flops_per_s else "assumption"
    halves = (gpu.half_flops_per_s,) * 2 if gpu.half_flops_per_s else UNKNOWN_HALF
    singles = (gpu.float32_flops_per_s,) * 2 if gpu.float32_flops_per_s else (halves[0] / 16, halves[1])
    figures = {"bfloat16": halves if gpu.bf16 else singles, "float16": halves, "float32": singles}
    bandwidth = (gpu.memory_bytes_per_s,) * 2 if gpu.memory_bytes_per_s else UNKNOWN_MEMORY
    memory = _share(bandwidth, MEMORY["data sheet"], basis)
    return Rates(
        products={dtype: _share(figure, PRODUCTS["data sheet"], basis) for dtype, figure in figures.items()},
        attention={dtype: _share(figure, ATTENTION["data sheet"], basis) for dtype, figure in figures.items()},
        memory=memory,
        unpack=_share((memory.lower, memory.upper), UNPACK_SHARE, "assumption"),
        launch_s=CUDA_LAUNCH_S,
        runs_ahead=True,
        host_link=_share(HOST_LINK_BYTES_PER_S, (1, 1), "assumption"),
        power_w=Range(lower=POWER_SHARE[0] * gpu.tdp_w, upper=POWER_SHARE[1] * gpu.tdp_w) if gpu.tdp_w else None,
    )


def cpu_rates(flops_per_s: Mapping[Dtype, float], bytes_per_s: tuple[float, float]) -> Rates:
    """Of this CPU, from what was measured just before. flops_per_s: by dtype. bytes_per_s: also with new pages."""
    in_pieces, at_once = ((figure, figure) for figure in bytes_per_s)
    memory = _share(in_pieces, MEMORY["measured"], "measured")
    figures = {dtype: (figure, figure) for dtype, figure in flops_per_s.items()}
    return Rates(
        products={dtype: _share(figure, PRODUCTS["measured"], "measured") for dtype, figure in figures.items()},
        attention={dtype: _share(figure, ATTENTION["measured"], "measured") for dtype, figure in figures.items()},
        memory=memory,
        new_pages=_share(at_once, NEW_PAGES_SHARE, "measured"),
        unpack=_share((memory.lower, memory.upper), UNPACK_SHARE, "assumption"),
        launch_s=CPU_LAUNCH_S,
        runs_ahead=False,
        host_link=memory,
    )


def bench_rates(rates: Rates, bench: Bench, hidden_size: int | None = None) -> Rates:
    """`rates` with what the bench has measured in place of data sheet and assumption; the rest stays.

    Products: those of the layer whose width is nearest to hidden_size; None: of the slowest and the quickest layer.
    """

    def measured(readings: tuple[Reading, ...], share: tuple[float, float], otherwise: Rate) -> Rate:
        if not readings:
            return otherwise
        slowest, quickest = min(reading.median for reading in readings), max(reading.most for reading in readings)
        rate = _share((slowest, quickest), share, "measured")
        return replace(rate, on=bench.date)

    # on a CPU the smaller kernels' memory, of which cpu_rates takes other shares
    memory = bench.find("memory")
    on_gpu = bench.find("copy") if not memory else ()
    return replace(
        rates,
        products={
            dtype: measured(_nearest(bench.find("product", dtype), hidden_size), PRODUCTS["measured"], rate)
            for dtype, rate in rates.products.items()
        },
        attention={
            dtype: measured(bench.find("attention", dtype), BENCH_ATTENTION, rate)
            for dtype, rate in rates.attention.items()
        },
        memory=measured(memory or on_gpu, MEMORY["measured"] if memory else BENCH_MEMORY, rates.memory),
        new_pages=measured(bench.find("new pages"), NEW_PAGES_SHARE, rates.new_pages) if rates.new_pages else None,
        unpack=measured(
            tuple(reading for reading in bench.readings if reading.what == "unpack"), BENCH_UNPACK, rates.unpack
        ),
        host_link=measured(bench.find("to device"), BENCH_HOST_LINK, rates.host_link),
    )


def _nearest(readings: tuple[Reading, ...], hidden_size: int | None) -> tuple[Reading, ...]:
    """Those of the inner size nearest to hidden_size, by ratio."""
    if hidden_size is None or not readings:
        return readings
    nearest = min(abs(math.log(reading.shape[1] / hidden_size)) for reading in readings)
    return tuple(r for r in readings if abs(math.log(r.shape[1] / hidden_size)) == nearest)


def _share(figure: tuple[float, float], share: tuple[float, float], basis: Basis) -> Rate:
    return Rate(lower=figure[0] * share[0], upper=figure[1] * share[1], basis=basis)


def measure_cpu_flops(
    dtype: Dtype, shape: ModelShape, seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of this CPU on products of the model's own width, best of as many tries as fit in `seconds`."""
    import torch

    from autoft.trainer.build import torch_dtype

    tokens, inner, outer = 512, shape.hidden_size, shape.intermediate_size
    left = torch.randn(tokens, inner).to(torch_dtype(dtype))
    right = torch.randn(inner, outer).to(left.dtype)
    with torch.no_grad():
        best = _fastest(lambda: left @ right, seconds, clock)
    return 2 * tokens * inner * outer / best


def measure_cpu_bandwidth(seconds: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
    """Bytes/s of this CPU through elementwise products: in pieces of 4 MiB, together beyond its caches, and in one."""
    import torch

    whole = torch.ones(NEW_PAGES_BYTES // 4)
    pieces = list(whole.view(-1, 2**20))
    moved = 2 * whole.numel() * whole.element_size()
    with torch.no_grad():
        in_pieces = _fastest(lambda: [piece * piece for piece in pieces][-1], seconds, clock)
        at_once = _fastest(lambda: whole * whole, seconds, clock)
    return moved / in_pieces, moved / at_once


def _fastest(run: Callable[[], torch.Tensor], seconds: float, clock: Callable[[], float]) -> float:
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = clock()
        run()
        best = min(best, clock() - began)
    return best
