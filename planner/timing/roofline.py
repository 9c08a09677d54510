"""How long does one training step take? A range: each of its kernels against what the device does in a second.

What a GPU without a bench does in a second is in gpu_rates.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from autoft.planner.estimate import Range
from autoft.planner.facts import Assumption
from autoft.profiles.bench_store import Bench, Reading
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import Dtype
from autoft.units import MIB

if TYPE_CHECKING:
    import torch

    from autoft.planner.tracing.work import Work

Basis = Literal["measured", "data sheet", "assumption"]
# What a run's time was predicted from, as the history keeps it: another key, and no past run corrects the next.
BASIS_KEYS: dict[Basis, str] = {"measured": "measured now", "data sheet": "data sheet", "assumption": "assumption"}

# What a step on a CPU gets of what was measured beside it, least and most. Assumptions, met by the 12 steps of
# benchmarks/step_time.py. Products: small and skinny ones among them. Attention: the kernel has less of the matrix
# units. Memory: strided and reducing kernels, and those that do more than multiply; on the fast side a part of what a
# kernel reads is still in the cache, where the last one has left it.
PRODUCTS = (0.5, 1.1)
ATTENTION = (0.05, 0.5)
MEMORY = (0.35, 1.4)
# Unpacking 4-bit weights is arithmetic on bytes. Assumption: between a quarter and all of the memory's rate.
UNPACK_SHARE = (0.25, 1.0)
# On a CPU a result of 32 MiB or more gets new pages every time: DEFAULT_MMAP_THRESHOLD_MAX of glibc's malloc.c. Its
# kernel moves at least twice that. Measured on one that writes half of what it moves; assumption: of others, which
# write a third or in place, the quickest get two and a half times as much.
NEW_PAGES_BYTES = 2 * 32 * MIB
NEW_PAGES_SHARE = (0.5, 2.5)
# What a step's products get of what a card reaches in large square ones: least, likely, most. cuBLAS on an H100 gets
# 0.89 and more of its best for 1,024 and more in each dimension, and less for less, a fixed 5 to 8 us a product left
# aside (25 shapes of OpenXLA's xla/service/gpu/model/matmul_interpolator_data.h, sm_90). Assumption: other layouts and
# odd sizes cost more, and a card that is not busy all the time clocks higher.
CARD_PRODUCTS = (0.70, 0.92, 1.08)
# Of what a bench has measured of this very thing, the median of its slowest shape and the best of its quickest: what
# else was at work widens the range. Products, and a CPU's memory, as above. Assumptions, met by the 12 steps of
# benchmarks/step_time.py --bench on a CPU; no card's bench was compared with a step on it. A copy on a card is quicker
# than most kernels.
BENCH_MEMORY = (0.7, 1.25)
BENCH_ATTENTION = (0.4, 1.3)
BENCH_UNPACK = (0.6, 1.2)
BENCH_HOST_LINK = (0.6, 1.05)
# Host seconds a kernel: an operation issued from Python, with modules, autograd and dispatch around it. An assumption
# for the machine at hand.
CPU_LAUNCH_S = Range(lower=2e-6, upper=25e-6)
# PCIe, one direction: 3.0 with 8 lanes to 5.0 with 16 (8, 16 and 32 GT/s a lane, 128/130 encoded). Assumption: at most
# all of it.
HOST_LINK_BYTES_PER_S = (7.9e9, 63e9)
NOTHING, ONCE = Range(lower=0.0, upper=0.0), Range(lower=1.0, upper=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """So much a second. lower, upper: of what a step gets; likely: between them, None for the geometric middle.

    basis: where the figure is from. on: the day of a bench.
    """

    lower: float
    upper: float
    basis: Basis
    on: str | None = None
    likely: float | None = None

    @property
    def middle(self) -> float:
        """What a step most likely gets."""
        return math.sqrt(self.lower * self.upper) if self.likely is None else self.likely


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a device does.

    products, attention, efficient: FLOP/s by dtype; the last of the memory-efficient attention kernel, which on a card
    without FlashAttention is all there is. memory: bytes/s read and written; new_pages: of kernels from NEW_PAGES_BYTES
    on, where that differs. unpack: bytes/s of 4-bit weights and what they become.
    kernel_s: device seconds that a kernel takes besides its work. card_s: times as long as the figures say, on one card
    and another of the same kind.
    launch_s: host seconds a kernel; unpack_launches: what unpacking takes of the host besides, in launches.
    runs_ahead: the host launches while the device works. host_link: bytes/s between host and device. power_w: drawn by
    the device in a step; None where it is not known. held_to_w: power limit that the products are held to, if any.
    """

    products: dict[str, Rate]
    attention: dict[str, Rate]
    efficient: dict[str, Rate]
    memory: Rate
    unpack: Rate
    launch_s: Range
    runs_ahead: bool
    host_link: Rate
    power_w: Range | None = None
    new_pages: Rate | None = None
    kernel_s: Range = NOTHING
    card_s: Range = ONCE
    unpack_launches: float = 0.0
    held_to_w: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """step_s: of one micro-batch, forward and backward, and an optimizer step. energy_wh: of the device in it.

    basis: what the time is from. exchange: what several GPUs take to sum their gradients; None for one. link: what
    copying streamed layers takes; None where none is.
    """

    step_s: Range
    energy_wh: Range | None
    basis: Assumption
    exchange: Assumption | None = None
    link: Assumption | None = None


class _Span(NamedTuple):
    """Seconds."""

    least: float
    likely: float
    most: float


def step_timing(work: Work, paged_bytes: int, rates: Rates, offloaded_bytes: int = 0) -> Timing:
    """Time and energy of the kernels in `work` on a device of those `rates`.

    A kernel takes the longer of its arithmetic and its traffic. Where the host runs ahead, a step takes the longer of
    what device and host take; else their sum. Most: all paged state is fetched and written back besides. Offloaded
    checkpoints go to the host and come back in either.
    """
    copied, unpacks = 2 * offloaded_bytes, sum(n for kernel, n in work.items() if kernel.kind == "unpack")
    launches = work.total() + rates.unpack_launches * unpacks
    launching = Range(lower=launches * rates.launch_s.lower, upper=launches * rates.launch_s.upper)
    parts = _parts(work, rates)
    if rates.runs_ahead:
        device = _together(parts)
        lower = max(device.least * rates.card_s.lower, launching.lower)
        upper = max(device.most * rates.card_s.upper, launching.upper)
    else:
        lower = sum(part.least for part in parts) + launching.lower
        upper = sum(part.most for part in parts) + launching.upper
    step = Range(
        lower=lower + copied / rates.host_link.upper, upper=upper + (2 * paged_bytes + copied) / rates.host_link.lower
    )
    return Timing(step_s=step, energy_wh=step_energy(step, rates), basis=_basis(rates))


def step_energy(step: Range, rates: Rates) -> Range | None:
    """Wh that the device draws in `step` seconds; None where its power is not known."""
    power = rates.power_w
    return Range(lower=step.lower * power.lower / 3600, upper=step.upper * power.upper / 3600) if power else None


def _together(parts: list[_Span]) -> _Span:
    """Of parts whose rates have nothing to do with each other: not all are at their worst in the same step.

    Distances from what is likely add up as independent errors do, by their squares. Neither end falls where a part
    grows.
    """
    likely = sum(part.likely for part in parts)
    return _Span(
        likely - math.hypot(*(part.likely - part.least for part in parts)),
        likely,
        likely + math.hypot(*(part.most - part.likely for part in parts)),
    )


def _parts(work: Work, rates: Rates) -> list[_Span]:
    """What the kernels of each kind and dtype take, whose rate is one, and what all take to begin and end."""
    ends = [
        _seconds_by_part(work, rates, lambda rate: rate.upper),
        _seconds_by_part(work, rates, lambda rate: rate.middle),
        _seconds_by_part(work, rates, lambda rate: rate.lower),
    ]
    own, launches = rates.kernel_s, work.total()
    ends_of_own = _Span(launches * own.lower, launches * own.middle, launches * own.upper)
    return [*(_Span(*(end[part] for end in ends)) for part in ends[0]), ends_of_own]


def _seconds_by_part(work: Work, rates: Rates, of: Callable[[Rate], float]) -> dict[tuple[str, str], float]:
    memory, unpack, new_pages = of(rates.memory), of(rates.unpack), of(rates.new_pages or rates.memory)
    flops = {
        (kind, dtype): of(rate)
        for kind, by_dtype in (
            ("product", rates.products), ("attention", rates.attention), ("efficient", rates.efficient),
        )
        for dtype, rate in by_dtype.items()
    }  # fmt: skip
    seconds_by_part: dict[tuple[str, str], float] = {}
    for kernel, launches in work.items():
        if kernel.kind == "unpack":
            seconds = kernel.moved_bytes / unpack
        else:
            seconds = kernel.moved_bytes / (memory if kernel.moved_bytes < NEW_PAGES_BYTES else new_pages)
        part = (kernel.kind, kernel.dtype)
        if kernel.flops:
            seconds = max(seconds, kernel.flops / flops[part])
        seconds_by_part[part] = seconds_by_part.get(part, 0.0) + launches * seconds
    return seconds_by_part


def _short(value: float) -> str:
    """Two digits, and no power of ten."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _basis(rates: Rates) -> Assumption:
    """Rates of products and memory, and where they are from: in words, and as a key that past runs are compared by."""
    product, memory = max(rates.products.values(), key=lambda rate: rate.upper), rates.memory
    key = BASIS_KEYS[product.basis]
    words = {"measured": "measured just now", "data sheet": "from the data sheet", "assumption": "assumed"}[
        product.basis
    ]
    if product.on is not None:
        least, *_, most = _of_products(rates)
        key = f"bench of {product.on}"
        words = f"measured on {product.on}, of which a step is taken to get {least:.0%} to {most:.0%}"
    elif rates.held_to_w is not None:
        key += f", held to {rates.held_to_w:.0f} W"
        words += f" and its {rates.held_to_w:.0f} W limit"
    return Assumption(
        kind="time",
        basis=key,
        text=f"time: {_short(product.lower / 1e12)} to {_short(product.upper / 1e12)} TFLOP/s and "
        f"{_short(memory.lower / 1e9)} to {_short(memory.upper / 1e9)} GB/s, {words}",
        figures={
            "flops_per_s_lower": product.lower,
            "flops_per_s_upper": product.upper,
            "bytes_per_s_lower": memory.lower,
            "bytes_per_s_upper": memory.upper,
        },
    )


def cpu_rates(flops_per_s: Mapping[Dtype, float], bytes_per_s: tuple[float, float]) -> Rates:
    """Of this CPU, from what was measured just before. flops_per_s: by dtype. bytes_per_s: also with new pages."""
    in_pieces, at_once = ((figure, figure) for figure in bytes_per_s)
    memory = share_of(in_pieces, MEMORY, "measured")
    figures = {dtype: (figure, figure) for dtype, figure in flops_per_s.items()}
    attention: dict[str, Rate] = {dtype: share_of(figure, ATTENTION, "measured") for dtype, figure in figures.items()}
    return Rates(
        products={dtype: share_of(figure, PRODUCTS, "measured") for dtype, figure in figures.items()},
        attention=attention,
        efficient=attention,
        memory=memory,
        new_pages=share_of(at_once, NEW_PAGES_SHARE, "measured"),
        unpack=share_of((memory.lower, memory.upper), UNPACK_SHARE, "assumption"),
        launch_s=CPU_LAUNCH_S,
        runs_ahead=False,
        host_link=memory,
    )


def bench_rates(rates: Rates, bench: Bench, hidden_size: int | None = None) -> Rates:
    """`rates` with what the bench has measured in place of data sheet and assumption; the rest stays.

    Products: those of the layer whose width is nearest to hidden_size; None: of the slowest and the quickest layer.
    """

    def measured(readings: tuple[Reading, ...], share: tuple[float, ...], otherwise: Rate) -> Rate:
        if not readings:
            return otherwise
        slowest, quickest = min(reading.median for reading in readings), max(reading.most for reading in readings)
        rate = share_of((slowest, quickest), share, "measured")
        return replace(rate, on=bench.date)

    attention = {
        dtype: measured(bench.find("attention", dtype), BENCH_ATTENTION, rate)
        for dtype, rate in rates.attention.items()
    }
    # on a CPU the smaller kernels' memory, of which cpu_rates takes other shares
    memory = bench.find("memory")
    on_gpu = bench.find("copy") if not memory else ()
    return replace(
        rates,
        products={
            dtype: measured(_nearest(bench.find("product", dtype), hidden_size), _of_products(rates), rate)
            for dtype, rate in rates.products.items()
        },
        attention=attention,
        # the bench times what PyTorch takes on its own: on a card with FlashAttention that
        efficient=attention if rates.efficient == rates.attention else rates.efficient,
        memory=measured(memory or on_gpu, MEMORY if memory else BENCH_MEMORY, rates.memory),
        new_pages=measured(bench.find("new pages"), NEW_PAGES_SHARE, rates.new_pages) if rates.new_pages else None,
        unpack=measured(
            tuple(reading for reading in bench.readings if reading.what == "unpack"), BENCH_UNPACK, rates.unpack
        ),
        host_link=measured(bench.find("to device"), BENCH_HOST_LINK, rates.host_link),
        card_s=ONCE,  # it is this very card's
    )


def _of_products(rates: Rates) -> tuple[float, ...]:
    """What a step's products get of what was measured: least and most, on a card with the likely between them."""
    return CARD_PRODUCTS if rates.runs_ahead else PRODUCTS


def _nearest(readings: tuple[Reading, ...], hidden_size: int | None) -> tuple[Reading, ...]:
    """Those of the inner size nearest to hidden_size, by ratio."""
    if hidden_size is None or not readings:
        return readings
    nearest = min(abs(math.log(reading.shape[1] / hidden_size)) for reading in readings)
    return tuple(r for r in readings if abs(math.log(r.shape[1] / hidden_size)) == nearest)


def share_of(figure: tuple[float, float], share: tuple[float, ...], basis: Basis) -> Rate:
    """The least share of the lower figure to the most of the upper. share: least and most, or least, likely, most."""
    likely = share[1] * math.sqrt(figure[0] * figure[1]) if len(share) > 2 else None
    return Rate(lower=figure[0] * share[0], upper=figure[1] * share[-1], basis=basis, likely=likely)


def measure_cpu_flops(
    dtype: Dtype, shape: ModelShape, seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of this CPU on products of the model's own width, best of as many tries as fit in `seconds`."""
    import torch

    from autoft.trainer.recipe import torch_dtype

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
