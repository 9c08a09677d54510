"""The rules of attention beside the installed CUDA build of PyTorch, on the card that is here, described or real.

Each case is run for real, and its blocks of memory are compared, in order, with those that the planner foresees.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoft.planner.kernels.attention import attention_backend
from autoft.planner.kernels.dispatch import Kernels, scratch
from autoft.planner.kernels.rules import Device
from autoft.planner.tracing.trace import Trace

# Those that the trainer lets PyTorch choose from
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
NAMES = {"FLASH_ATTENTION": "flash", "EFFICIENT_ATTENTION": "efficient", "MATH": "math"}


class Case(NamedTuple):
    """length: of queries and keys. grouped: enable_gqa. masked: by booleans, in place of the causal order."""

    dtype: str
    heads: int
    key_heads: int
    length: int
    dim: int
    value_dim: int
    grouped: bool
    masked: bool


def _cases() -> list[Case]:
    found = []
    for dtype in ("float16", "bfloat16", "float32"):
        for key_heads, grouped in ((8, False), (2, True), (1, True), (1, False)):
            for dim, value_dim in (
                (32, 32),
                (64, 64),
                (72, 72),
                (71, 71),
                (96, 96),
                (128, 128),
                (256, 256),
                (192, 128),
            ):
                for length, masked in ((1000, False), (384, True), (100, True)):
                    found.append(Case(dtype, 8, key_heads, length, dim, value_dim, grouped, masked))
    return found


CASES = _cases()


def _device() -> Device:
    properties = torch.cuda.get_device_properties(0)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


def _inputs(case: Case, device: str) -> tuple[Any, ...]:
    shapes = ((case.heads, case.dim), (case.key_heads, case.dim), (case.key_heads, case.value_dim))
    dtype = getattr(torch, case.dtype)
    tensors = [torch.empty(2, case.length, n, d, dtype=dtype, device=device, requires_grad=True) for n, d in shapes]
    mask = torch.ones(2, 1, case.length, case.length, dtype=torch.bool, device=device) if case.masked else None
    return (*tensors, mask)


def _step(case: Case, q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, ...]:
    """Gradients of queries, keys and values, of ones."""
    heads_first = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(BACKENDS):
        out = functional.scaled_dot_product_attention(
            *heads_first, attn_mask=mask, is_causal=mask is None, enable_gqa=case.grouped
        )
    return torch.autograd.grad(out, (q, k, v), torch.ones_like(out))


def _taken(function: Callable[..., Any], *inputs: Any) -> list[int]:
    """Sizes of all blocks that a call takes on the device, in order."""
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=10**6)
    before = len(torch.cuda.memory._snapshot()["device_traces"][0])
    try:
        kept = function(*inputs)
        events = torch.cuda.memory._snapshot()["device_traces"][0][before:]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    del kept
    return [event["size"] for event in events if event["action"] == "alloc"]


def _foreseen(case: Case) -> list[int]:
    trace = Trace(scratch(_device()))
    inputs = _inputs(case, "meta")
    for tensor in inputs:
        if tensor is not None:
            trace.ignore(tensor)
    with trace, Kernels(_device()):
        kept = _step(case, *inputs)
        sizes = [size for section in trace.sections for _, size in section.events if size > 0]
    del kept
    return sizes


def _chosen(case: Case) -> str:
    q, k, v, mask = _inputs(case, "cuda")
    heads_first = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(BACKENDS):
        number = torch._fused_sdp_choice(*heads_first, mask, 0.0, mask is None, enable_gqa=case.grouped)
    return NAMES[SDPBackend(number).name]


def main() -> None:
    """Print what differs: kernels as (case, chosen, ruled), blocks as (case, taken, foreseen); and kernels compared."""
    kernels, blocks, compared = [], [], set()
    _taken(_step, CASES[0], *_inputs(CASES[0], "cuda"))  # what a first call takes once
    for case in CASES:
        chosen = _chosen(case)
        ruled = attention_backend(
            _device(), dtype=getattr(torch, case.dtype), head_dim=case.dim, value_dim=case.value_dim, heads=case.heads,
            key_heads=case.key_heads, grouped=case.grouped, masked=case.masked,
        )  # fmt: skip
        if chosen != ruled:
            kernels.append((case, chosen, ruled))
        if chosen == "math":
            continue
        compared.add(chosen)
        real, foreseen = _taken(_step, case, *_inputs(case, "cuda")), _foreseen(case)
        if real != foreseen:
            blocks.append((case, real, foreseen))
    print(json.dumps({"kernels": kernels, "blocks": blocks, "compared": sorted(compared)}))


if __name__ == "__main__":
    main()
