"""What does a GPU do in a second? From its data sheet and from what others measured on its kind; docs/decisions/0017.

No figure is fitted to the steps of benchmarks/measured_runs.py. Shares are (least, likely, most).
"""

from __future__ import annotations

import math
from dataclasses import replace

from autoft.planner.estimate import Range
from autoft.planner.timing.pcie import pcie_of
from autoft.planner.timing.roofline import CARD_PRODUCTS, HOST_LINK_BYTES_PER_S, Basis, Rate, Rates, share_of
from autoft.profiles.architectures import architecture
from autoft.profiles.hardware import Gpu

HALVES = ("bfloat16", "float16")
# Where 16-bit products are no quicker than this many times those of float32, no tensor cores do them, and PyTorch has
# them at the rate of float32: P40 and P100 there.
NO_TENSOR_CORES = 1.2
# Large square products in torch.matmul, the best of several sizes, as a share of the data sheet: github.com/zzc0721/
# torch-performance-test-data, database.md and issues. Where the data sheet's 16-bit rate is at most 2.5 times that of
# float32, as on GeForce cards from RTX 30 on: RTX 3090 1.06, 4070 SUPER 1.07, 4090 0.98 to 1.04, 5090 1.07 to 1.13,
# A10G 0.99. Elsewhere: V100 0.78, A100 0.83 to 0.85, H100 0.77 to 0.80, A40 0.80, A6000 0.78.
HALF_RATE = 2.5
BEST_HALVED = (0.97, 1.03, 1.1)
BEST_FULL = (0.73, 0.79, 0.84)
# The same of float32 without TF32. From compute capability 8.6 on half of the float32 units also do integers: RTX 3090
# 0.69, A40 0.63, A6000 0.62, 4090 0.66, L20 0.62, 5090 0.65. Before, and on 8.0 and 9.0: V100 0.9, RTX 2080 0.91,
# A100 0.98, H100 0.78.
BEST_FLOAT32_SHARED = (0.55, 0.66, 0.72)
BEST_FLOAT32 = (0.78, 0.9, 0.98)
# bfloat16 before 8.0 is worked out in float32, at 0.52 to 0.73 of its rate: P40, T4, RTX 2080, T10, V100 there.
BFLOAT16_IN_FLOAT32 = 0.57
# Joules that a card draws for a FLOP of long 16-bit products, where its power limit is what holds it: T4 24 TFLOP/s at
# 70 W (forums.developer.nvidia.com/t/about-gpu-peak-performance/264462, NVIDIA's own answer: "power capping"; the same
# chip without that limit gets 56, issue 90 there), A100 PCIe 206 at 250 W (issue 108), RTX A4000 60 at 140 W (97),
# L4 54 at 72 W (120). Other architectures: no card was seen that its limit holds. profiles/architectures.toml has them.
# A float32 FLOP outside of tensor cores draws so many times as much: T4 4.3 TFLOP/s at 70 W, A4000 11 at 140 W, L4 11
# at 72 W; the same place.
FLOAT32_ENERGY = 5.3
# A limit acts over many kernels: in a short run a T4 gets 42 TFLOP/s, an L4 70. In a step products take turns with
# kernels that draw less. Of the limit's rate.
HELD_PRODUCTS = (0.7, 0.92, 1.5)
# Fused attention, forward and backward together, of the data sheet's 16-bit rate. FlashAttention-2: 0.50 to 0.73 of an
# A100 (arXiv:2307.08691), causal 0.5 (facebookresearch/xformers issue 924), 0.53 to 0.71 of an RTX A5000 (gpu-mode/
# ring-attention issue 10), 0.35 of an H100 (arXiv:2407.08608); short and causal rows less (NVIDIA/TileGym pull 49).
FLASH = (0.3, 0.5, 0.7)
# The memory-efficient kernel: 0.42 to 0.45 of FlashAttention forward (TileGym), 0.3 of it with the backward
# (Dao-AILab/flash-attention issue 416); a T4's forward half as quick as one that gets 0.66 of it (issue 1533).
EFFICIENT = (0.1, 0.16, 0.26)
# The same in float32. Before 8.0, of the float32 rate that products get: its forward is as quick as products and
# softmax, its backward takes 1.3 times as long (xformers pull 362, V100). From 8.0 on three TF32 products stand for one
# (CUTLASS, OpMultiplyAddFastF32), so of a sixth of the 16-bit rate: an A100's forward gets 0.5 (xformers pull 389).
EFFICIENT_FLOAT32 = (0.35, 0.55, 0.8)
EFFICIENT_TF32 = (0.15, 0.3, 0.5)
# Of the data sheet's bytes/s. Copies: T4 240 of 320 GB/s, A100 1158 of 1555 (router-gao/cuda-demo, 02-cuda-bandwidth);
# elementwise A800 1727 of 1935 (mli/transformers-benchmarks issue 4). Assumption: strided and reducing kernels, and
# those that read twice, get a quarter less than copies.
MEMORY = (0.55, 0.75, 0.95)
# Unpacking 4-bit weights, of the same. Assumption: bitsandbytes' kernel before 0.48 is 1.25 to 1.8 times as slow on a
# T4 as it is now, when it comes near to a copy (bitsandbytes pull 1747).
UNPACK = (0.35, 0.6, 0.9)
# Device seconds that a kernel takes to begin and end: 5 to 8 us beside the work of a cuBLAS product (OpenXLA, as above
# CARD_PRODUCTS in roofline.py). Assumption: simpler kernels take 2.
KERNEL_S = Range(lower=2e-6, upper=6e-6)
# One card and another of a kind differ by 8 % on average and by 22 % at most (arXiv:2208.11035).
CARD_S = Range(lower=1 / 1.08, upper=1.22)
# Host seconds a kernel. Issuing an operation takes 5 to 25 us (jiahuanglin.xyz, From PyTorch op to kernel launch), and
# what is around it in PEFT's layers, checkpointing and autograd as much again: 38 to 51 us of a 2.6 GHz server core
# that others shared, on a device that takes no time (benchmarks/launch_cost.py; recorded loops there 43 to 47).
# Assumption: a desktop's core is twice as quick; a slow cloud's core, or Windows' driver, takes a fifth more.
LAUNCH_S = Range(lower=22e-6, upper=54e-6)
# Launches more that unpacking for a 4-bit product costs the host, bitsandbytes 0.50.2, in the same way: 3 to 4 in the
# recorded loops, 6.5 to 8 in the trainer's own step.
UNPACK_LAUNCHES = 5.0
# Copies between pinned memory and a card, of what its PCIe link carries. Assumption: a card that is not here may sit in
# a slot with half of its lanes or of the generation before.
PCIE_HERE = (0.7, 0.9)
PCIE_AS_BUILT = (0.35, 0.9)
# Assumptions for a card that no data sheet is known of.
UNKNOWN_HALF = (10e12, 100e12)
UNKNOWN_MEMORY = (200e9, 1000e9)
# Of a card's power limit, drawn in a step: an assumption. A card that waits for its host draws little.
POWER_SHARE = (0.3, 1.0)


def gpu_rates(gpu: Gpu) -> Rates:
    """Of a card, from its data sheet; from wide assumptions where there is none.

    Without tensor cores for a dtype its products go at the float32 rate: bfloat16 before compute capability 8.0. TF32
    is off in PyTorch unless it is asked for.
    """
    basis: Basis = "data sheet" if gpu.half_flops_per_s else "assumption"
    halves = (gpu.half_flops_per_s,) * 2 if gpu.half_flops_per_s else UNKNOWN_HALF
    singles = (gpu.float32_flops_per_s,) * 2 if gpu.float32_flops_per_s else (halves[0] / 16, halves[1])
    bandwidth = (gpu.memory_bytes_per_s,) * 2 if gpu.memory_bytes_per_s else UNKNOWN_MEMORY
    shared = gpu.compute_capability is not None and architecture(gpu.compute_capability).shared_float32
    single = _products(gpu, singles, BEST_FLOAT32_SHARED if shared else BEST_FLOAT32, basis, FLOAT32_ENERGY)
    half = single
    if halves[0] > NO_TENSOR_CORES * singles[0]:
        half = _products(gpu, halves, BEST_HALVED if halves[0] <= HALF_RATE * singles[0] else BEST_FULL, basis)
    efficient = dict.fromkeys(HALVES, share_of(halves, EFFICIENT, basis))
    attention = dict.fromkeys(HALVES, share_of(halves, FLASH, basis)) if gpu.bf16 else efficient
    if gpu.bf16:
        of_float32 = share_of((halves[0] / 6, halves[1] / 6), EFFICIENT_TF32, basis)
    else:
        of_float32 = share_of((single.middle,) * 2, EFFICIENT_FLOAT32, basis)
    return Rates(
        products={"bfloat16": half if gpu.bf16 else _slower(single), "float16": half, "float32": single},
        attention={**attention, "float32": of_float32},
        efficient={**efficient, "float32": of_float32},
        memory=share_of(bandwidth, MEMORY, basis),
        unpack=share_of(bandwidth, UNPACK, "assumption"),
        kernel_s=KERNEL_S,
        card_s=CARD_S,
        launch_s=LAUNCH_S,
        unpack_launches=UNPACK_LAUNCHES,
        runs_ahead=True,
        host_link=_host_link(gpu),
        power_w=Range(lower=POWER_SHARE[0] * gpu.tdp_w, upper=POWER_SHARE[1] * gpu.tdp_w) if gpu.tdp_w else None,
        held_to_w=gpu.tdp_w if _held(gpu) < BEST_FULL[0] * halves[0] else None,
    )


def _host_link(gpu: Gpu) -> Rate:
    known = pcie_of(gpu)
    if known is None:
        return share_of(HOST_LINK_BYTES_PER_S, (1, 1), "assumption")
    looked = gpu.status is not None and gpu.status.pcie_max_width is not None
    return share_of((known[0],) * 2, PCIE_HERE if looked else PCIE_AS_BUILT, "data sheet")


def _products(
    gpu: Gpu, sheet: tuple[float, float], best: tuple[float, float, float], basis: Basis, energy: float = 1.0
) -> Rate:
    """Of matrices: what the data sheet or the power limit lets them have, the lesser.

    energy: of a FLOP, in those of a 16-bit one.
    """
    free = share_of(sheet, tuple(b * s for b, s in zip(best, CARD_PRODUCTS, strict=True)), basis)
    limit = _held(gpu) / energy
    least, likely, most = (limit * share for share in HELD_PRODUCTS)
    return Rate(
        lower=min(free.lower, least), upper=min(free.upper, most), likely=min(free.middle, likely), basis=free.basis
    )


def _held(gpu: Gpu) -> float:
    """FLOP/s of 16-bit products at the card's power limit; infinite where none is known to hold it."""
    joules = architecture(gpu.compute_capability).joules_per_flop if gpu.compute_capability else None
    return gpu.tdp_w / joules if joules and gpu.tdp_w else math.inf


def _slower(rate: Rate) -> Rate:
    """That of bfloat16 where it is worked out in float32."""
    return replace(
        rate,
        lower=rate.lower * BFLOAT16_IN_FLOAT32,
        upper=rate.upper * BFLOAT16_IN_FLOAT32,
        likely=rate.middle * BFLOAT16_IN_FLOAT32,
    )
