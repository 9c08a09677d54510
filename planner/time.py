"""How long does one training step take? A range: matrix work over what the device can do, at stated efficiencies."""

from __future__ import annotations

import time

from autoft.planner.estimate import Range
from autoft.profiles.hardware import Gpu
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import Recipe

# Assumptions: the part of a device's matrix throughput that a step of an ordinary implementation reaches.
GPU_EFFICIENCY = (0.10, 0.60)
# The CPU's throughput is measured on plain products just before; a step adds attention, norms and copies to them.
CPU_EFFICIENCY = (0.35, 1.0)
GPU_STEP_OVERHEAD_S = 0.02  # assumption: launching the kernels of a small step
UNKNOWN_GPU_FLOPS_PER_S = (10e12, 100e12)  # assumption for a card without a data-sheet figure


def step_flops(recipe: Recipe, shape: ModelShape) -> float:
    """Floating point operations of one micro-batch, forward and backward, under a frozen base.

    4 * weights a token: 2 forward, 2 for the gradient of the inputs; the frozen weights need none of their own.
    Checkpointing adds a second forward (2 more). Attention: 4 * layers * heads * head_dim * seq_len a token and pass.
    Leaves out: the adapter, embedding look-up, softmax, dequantization.
    """
    tokens = recipe.micro_batch * recipe.seq_len
    passes = 6 if recipe.gradient_checkpointing else 4
    embedding = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    weights = shape.total_params - embedding
    attention = passes * shape.num_layers * shape.num_heads * shape.head_dim * recipe.seq_len
    return float(tokens * (passes * weights + attention))


def gpu_step_time(recipe: Recipe, shape: ModelShape, gpu: Gpu) -> tuple[Range, str]:
    """Seconds of a step on a GPU, and the assumption behind them."""
    low, high = GPU_EFFICIENCY
    flops = step_flops(recipe, shape)
    if gpu.half_flops_per_s is None:
        slow, fast = UNKNOWN_GPU_FLOPS_PER_S
        return Range(
            lower=flops / fast, upper=flops / slow + GPU_STEP_OVERHEAD_S
        ), "time: no data-sheet figure for this card"
    peak = gpu.half_flops_per_s / (2 if recipe.base_dtype == "float32" else 1)
    step = Range(lower=flops / (peak * high), upper=flops / (peak * low) + GPU_STEP_OVERHEAD_S)
    return step, f"time: {low:.0%} to {high:.0%} of the card's {gpu.half_flops_per_s / 1e12:.0f} TFLOP/s (data sheet)"


def cpu_step_time(recipe: Recipe, shape: ModelShape, flops_per_s: float) -> tuple[Range, str]:
    """Seconds of a step on the CPU, and the measurement behind them."""
    low, high = CPU_EFFICIENCY
    flops = step_flops(recipe, shape)
    step = Range(lower=flops / (flops_per_s * high), upper=flops / (flops_per_s * low))
    measured = f"{flops_per_s / 1e9:.0f} GFLOP/s just measured on this CPU in {recipe.base_dtype}"
    return step, f"time: {low:.0%} to {high:.0%} of the {measured}"


def measure_cpu_flops(dtype: str, shape: ModelShape, seconds: float = 0.3) -> float:
    """FLOP/s of this CPU on products of the model's own width, best of as many tries as fit in `seconds`."""
    import torch

    from autoft.trainer.build import torch_dtype

    tokens, inner, outer = 512, shape.hidden_size, shape.intermediate_size
    left = torch.randn(tokens, inner).to(torch_dtype(dtype))  # type: ignore[arg-type]
    right = torch.randn(inner, outer).to(left.dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    with torch.no_grad():
        left @ right
        while time.perf_counter() < until:
            began = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - began)
    return 2 * tokens * inner * outer / best
