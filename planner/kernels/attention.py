"""Attention as the real device's kernels do it: which one it takes, what that keeps, and the room it works in.

Each names where it was read.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch.nn import functional

from autoft.planner.kernels.rules import Device
from autoft.planner.tracing.trace import count, stands_for
from autoft.planner.tracing.work import Kernel, attention
from autoft.profiles.architectures import architecture
from autoft.trainer.compat.transformers import FLASH_DTYPES

Backend = Literal["flash", "efficient", "math"]


# From this release on the memory-efficient kernel takes grouped heads, both fused kernels take one key head for all
# without being asked to (github.com/pytorch/pytorch/pull/191085), and the random generator's state is on the device.
# Before, attention.cu keeps that state on the host, and check_batch_size_and_num_heads_dense<false> refuses the heads.
EFFICIENT_TAKES_GROUPS = (2, 14)


def attention_backend(
    device: Device,
    *,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    heads: int,
    key_heads: int,
    grouped: bool,
    masked: bool,
) -> Backend:
    """Which SDPA kernel CUDA takes, flash before efficient before math; aten .../transformers/cuda/sdp_utils.cpp.

    flash: 16 bits, compute capability from 8.0, no mask, head_dim to 256, equal for values.
    efficient: heads that fill 16 bytes, of float32 below 8.0 any; bfloat16 from 8.0 on; grouped heads as
    EFFICIENT_TAKES_GROUPS says. grouped: whether enable_gqa is set.
    """
    assert device.capability is not None
    modern, takes_groups = device.capability >= (8, 0), device.torch >= EFFICIENT_TAKES_GROUPS
    half = dtype in (torch.float16, torch.bfloat16)
    same_heads = heads == key_heads or (takes_groups and key_heads == 1)
    if half and modern and not masked and head_dim == value_dim <= 256 and (same_heads or grouped):
        return "flash"
    if (
        (same_heads or (grouped and takes_groups))
        and (modern or dtype != torch.bfloat16)
        and head_dim % _efficient_alignment(dtype, modern) == value_dim % _efficient_alignment(dtype, modern) == 0
    ):
        return "efficient"
    return "math"


def _efficient_alignment(dtype: torch.dtype, modern: bool) -> int:
    """Values that a head must be a multiple of; minimum_gemm_alignment in sdp_utils.cpp."""
    if dtype == torch.float32:
        return 4 if modern else 1
    return 8


class FlashAttention(torch.autograd.Function):
    """q_BHSD, k_BGTD, v_BGTD -> out_BHSD; aten .../transformers/cuda/flash_attn/flash_api.cpp, mha_fwd and mha_bwd.

    Keeps its inputs, its output, a float32 log-sum-exp a query and the state of the random generator. The backward
    sums in float32, the sequence rounded up to 128 and the head to 32, and the gradients of grouped keys for all heads.
    """

    @staticmethod
    @stands_for("flash attention", "aten .../transformers/cuda/flash_attn/flash_api.cpp, mha_fwd")
    def forward(ctx: Any, q: Any, k: Any, v: Any, splits: int, causal: bool) -> Any:
        batch, heads, length, dim = q.shape
        out = torch.empty_like(q)  # laid out as queries are
        logsumexp = q.new_empty(batch, heads, length, dtype=torch.float32)
        if splits > 1:
            parts = (
                q.new_empty(splits, batch, heads, length, dtype=torch.float32),
                q.new_empty(splits, batch, heads, length, _rounded_head(dim), dtype=torch.float32),
            )
            del parts
        generator = (q.new_empty(2, dtype=torch.int64), q.new_empty((), dtype=torch.int64))
        ctx.save_for_backward(k, q, v, logsumexp, out, *generator)  # dropped by name, as the node of autograd has them
        ctx.causal = causal
        count(attention(q, k, v, causal=causal))
        return out

    @staticmethod
    @stands_for("flash attention", "aten .../transformers/cuda/flash_attn/flash_api.cpp, mha_bwd")
    def backward(ctx: Any, grad: Any) -> Any:
        saved = list(ctx.saved_tensors)
        k, q, v, _, out = saved[:5]
        batch, heads, length, dim = q.shape
        rows = [t.transpose(1, 2).contiguous() for t in (grad, out)]
        like = [torch.empty_like(t) for t in (q, k, v)]
        rounded = -(-length // 128) * 128
        delta = q.new_empty(batch, heads, rounded, dtype=torch.float32)
        accumulator = q.new_empty(batch, rounded, heads, _rounded_head(dim), dtype=torch.float32)
        if k.size(1) != heads:
            expanded = [t.new_empty(batch, t.size(2), heads, t.size(3)) for t in (k, v)]
            del expanded
        del accumulator, delta, rows, out
        count(attention(q, k, v, causal=ctx.causal, backward=True))
        del q, k, v, _
        _end(saved)
        return (*like, None, None)


def _end(saved: list[torch.Tensor]) -> None:
    """What a node has unpacked ends with it, the last first, as C++ has it. What it still holds outlives this."""
    while saved:
        saved.pop()


def _rounded_head(dim: int) -> int:
    multiple = 32 if dim <= 128 else 64
    return -(-dim // multiple) * multiple


# Assumption, as lengths are not known: packed examples have so many tokens
TOKENS_PER_EXAMPLE = 256


class _FlashOfManyLengths(torch.autograd.Function):
    """q_THD, k_THD, v_THD of examples end to end -> out_THD; flash-attn's flash_api.cpp, mha_varlen_fwd and _bwd.

    Keeps its inputs, its output, a float32 log-sum-exp a query, where the examples begin, and the random generator's
    state. The backward's float32 sums leave 128 tokens of room after every example.
    """

    @staticmethod
    @stands_for("flash attention of many lengths", "flash-attn csrc/flash_attn/flash_api.cpp, mha_varlen_fwd")
    def forward(ctx: Any, q: Any, k: Any, v: Any, causal: bool) -> Any:
        tokens, heads, _ = q.shape
        out = q.new_empty(tokens, heads, v.size(-1))
        logsumexp = q.new_empty(heads, tokens, dtype=torch.float32)
        generator = q.new_empty(2, dtype=torch.int64)
        starts = q.new_empty(-(-tokens // TOKENS_PER_EXAMPLE) + 1, dtype=torch.int32)
        ctx.save_for_backward(q, k, v, out, logsumexp, starts, generator)
        ctx.causal = causal
        count(_attention_of_examples(q, k, v, causal=causal))
        return out

    @staticmethod
    @stands_for("flash attention of many lengths", "flash-attn csrc/flash_attn/flash_api.cpp, mha_varlen_bwd")
    def backward(ctx: Any, _grad: Any) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        tokens, heads, dim = q.shape
        like = [torch.empty_like(t) for t in (q, k, v)]
        room = tokens + 128 * -(-tokens // TOKENS_PER_EXAMPLE)
        delta = q.new_empty(heads, room, dtype=torch.float32)
        accumulator = q.new_empty(room, heads, _rounded_head(dim), dtype=torch.float32)
        if k.size(1) != heads:
            expanded = [t.new_empty(tokens, heads, t.size(2)) for t in (k, v)]
            del expanded
        del delta, accumulator
        count(_attention_of_examples(q, k, v, causal=ctx.causal, backward=True))
        return (*like, None)


def _attention_of_examples(q: Any, k: Any, v: Any, *, causal: bool, backward: bool = False) -> Kernel:
    examples = -(-q.size(0) // TOKENS_PER_EXAMPLE)
    one = attention(
        *(t[:TOKENS_PER_EXAMPLE].transpose(0, 1)[None] for t in (q, k, v)), causal=causal, backward=backward
    )
    return one._replace(flops=examples * one.flops, moved_bytes=examples * one.moved_bytes)


def flash_package(
    device: Device,
    packed: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    is_causal: bool,
    position_ids: torch.Tensor | None = None,
    target_dtype: torch.dtype | None = None,
    **_: Any,
) -> torch.Tensor:
    """q_BSHD and the like -> out_BSHD, by the package flash-attn; transformers/modeling_flash_attention_utils.py.

    Raises: ValueError where packed examples would see each other.
    """
    assert attention_mask is None  # compute_loss hands none on
    q, k, v = FLASH_DTYPES.fetch()(q, k, v, target_dtype)
    if position_ids is not None and q.size(0) == 1:  # _is_packed_sequence
        places = torch.arange(position_ids.size(1), device=q.device) + position_ids.min()
        (places - position_ids).abs().sum()
        del places
    elif packed:
        raise ValueError("its attention is not told where packed examples begin")
    dim = q.size(-1)
    if dim % 8:
        q, k, v = (functional.pad(t, (0, -dim % 8)) for t in (q, k, v))
    out: torch.Tensor
    if packed:
        rows = (t.contiguous().view(-1, t.size(-2), t.size(-1)) for t in (q, k, v))
        out = _FlashOfManyLengths.apply(*rows, is_causal).unsqueeze(0)  # type: ignore[no-untyped-call]
    else:
        splits = flash_splits(device, q.size(0), q.size(2), q.size(1), k.size(1), q.size(-1))
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        out = FlashAttention.apply(*heads_first, splits, is_causal).transpose(1, 2)  # type: ignore[no-untyped-call]
    return out[..., :dim] if dim % 8 else out


def flash_splits(device: Device, batch: int, heads: int, length: int, keys: int, dim: int) -> int:
    """How many parts of the keys a small grid works on at once, without dropout; flash_api.cpp num_splits_heuristic."""
    if device.multiprocessors is None:
        return 1
    blocks = -(-keys // (256 if dim <= 64 else 128 if dim <= 128 else 64))
    tiles, room = batch * heads * -(-length // 64), 2 * device.multiprocessors
    if tiles >= 0.8 * room:
        return 1
    efficiency = {}
    for splits in range(1, min(128, room, blocks) + 1):
        if splits == 1 or -(-blocks // splits) != -(-blocks // (splits - 1)):
            waves = tiles * splits / room
            efficiency[splits] = waves / math.ceil(waves)
    best = max(efficiency.values())
    return min(splits for splits, reached in efficiency.items() if reached >= 0.85 * best)


class EfficientAttention(torch.autograd.Function):
    """As flash, with a mask; aten .../transformers/cuda/attention.cu and attention_backward.cu.

    The log-sum-exp is rounded up to 32 queries, and empty where no gradient is wanted. Heads above 128 are summed in
    float32 beside a 16-bit output. The backward takes the gradients of grouped keys and values for all heads, and sums
    them in the end.
    """

    @staticmethod
    @stands_for("memory-efficient attention", "aten .../transformers/cuda/attention.cu")
    def forward(ctx: Any, q: Any, k: Any, v: Any, bias: Any, device: Device, causal: bool) -> Any:
        batch, heads, length, _ = q.shape
        on_device = device.torch >= EFFICIENT_TAKES_GROUPS
        generator = [q.new_empty((), dtype=torch.int64) for _ in range(2)] if on_device else []
        out = q.new_empty(batch, length, heads, v.size(-1)).transpose(1, 2)
        rounded = -(-length // 32) * 32 if any(ctx.needs_input_grad[:3]) else 0
        logsumexp = q.new_empty(batch, heads, rounded, dtype=torch.float32)
        if max(q.size(-1), v.size(-1)) > 128 and q.dtype != torch.float32:
            sums = q.new_empty(batch, length, heads, v.size(-1), dtype=torch.float32)
            del sums
        ctx.save_for_backward(*(() if bias is None else (bias,)), k, q, v, logsumexp, out, *generator)
        ctx.capability, ctx.causal, ctx.biased = device.capability, causal, bias is not None
        count(attention(q, k, v, causal=causal, efficient=True))
        return out

    @staticmethod
    @stands_for("memory-efficient attention", "aten .../transformers/cuda/attention_backward.cu")
    def backward(ctx: Any, grad: Any) -> Any:
        saved = list(ctx.saved_tensors)
        k, q, v = saved[ctx.biased :][:3]
        batch, heads, length, dim = q.shape
        grad = grad.transpose(1, 2).contiguous()
        like = [t.new_empty(t.size(0), t.size(2), t.size(1), t.size(3)).transpose(1, 2) for t in (q, k, v)]
        expanded = [t.new_empty(batch, t.size(2), heads, t.size(3)) for t in (k, v) if t.size(1) != heads]
        if q.dtype == torch.float32:
            product = torch.empty_like(grad)
            sums = q.new_empty(batch, length, heads)
            delta = q.new_empty(batch, heads, length)
            del product, sums
        else:
            delta = q.new_empty(batch, heads, length, dtype=torch.float32)
        dims = (dim, v.size(-1))
        floats = _efficient_workspace_floats(ctx.capability, q.dtype, length, k.size(2), dims, batch * heads)
        workspace = q.new_empty(batch * heads * floats, dtype=torch.float32)
        del delta, workspace, expanded
        count(attention(q, k, v, causal=ctx.causal, backward=True, efficient=True))
        del q, k, v
        _end(saved)
        return (*like, None, None, None)


def _efficient_workspace_floats(
    capability: tuple[int, int], dtype: torch.dtype, length: int, keys: int, dims: tuple[int, int], heads: int
) -> int:
    """float32 workspace of a head; gradQ_workspace_elements and its like in mem_eff_attention/kernel_backward.h.

    The kernel is the first, of those that generate_kernels.py makes, that takes the head and the shared memory of the
    card. dims: of a head of queries and keys, and of values. heads: batch times heads.
    """
    half = dtype != torch.float32
    card = architecture(capability)
    large_shared_memory = card.large_shared_memory
    wide = large_shared_memory or (half and capability[0] == 7)  # the kernels of 7.x need less room there
    queries, columns, longest = 64, 64, 2**16
    if max(dims) <= 64:
        longest = 32 if max(dims) <= 32 else 64
    elif half and card.heads_of_96 and max(dims) <= 96:
        queries, longest = 128, 96
    elif max(dims) <= 128:
        longest = 128
        queries = 128 if wide else 64
        columns = 128 if half and large_shared_memory else 64
    elif half or large_shared_memory:
        queries = 128
    of_queries = -(-length // queries) * -(-dims[0] // columns) * (4 + queries * columns)
    of_keys = of_values = 0
    if half and longest > queries:
        splits = -(-keys // columns)
        if heads >= 256 and keys <= 2 * columns:
            splits = 1
        splits = max(1, min(splits, 200 // heads))
        of_keys, of_values = (splits * columns * (-(-size // queries) * queries) for size in dims)
    return -(-(of_queries + of_keys + of_values) // 4) * 4


def math_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Any,
    dropout: float,
    causal: bool,
    scale: Any,
    *,
    grouped: bool,
    cuda: bool,
) -> torch.Tensor:
    """_scaled_dot_product_attention_math of aten .../transformers/attention.cpp, in float32 throughout.

    Written out because it adds the mask in place, but not while a dispatch mode looks on.
    """
    dtype, heads = q.dtype, q.size(1)
    q, k, v = (t.float() for t in (q, k, v))
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(q.size(-1)))
    q = q * root
    if causal:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        mask = as_bias(mask, torch.float32)
    if grouped:
        k, v = (t.repeat_interleave(heads // t.size(1), 1) for t in (k, v))
    weights = q @ (k.transpose(-2, -1) * root)
    if mask is not None:
        weights.add_(mask)
    weights = torch.ops.aten._safe_softmax(weights, -1)
    if dropout:  # on the CPU it keeps a mask as wide as the weights
        weights = (
            torch.ops.aten.native_dropout(weights, dropout, True)[0] if cuda else torch.dropout(weights, dropout, True)
        )
    returned = weights.to(dtype)
    out: torch.Tensor = (weights @ v).to(dtype)
    del returned
    return out


def as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention adds to its scores, made anew in every layer of a mask of booleans; convert_boolean_attn_mask."""
    if mask.dtype != torch.bool:
        return mask
    zero, refused = (torch.empty((), dtype=dtype, device=mask.device) for _ in range(2))
    return torch.where(mask, zero, refused)


def aligned(bias: torch.Tensor) -> torch.Tensor:
    """As the memory-efficient kernel wants it, in a storage whose rows are padded; attention.cpp, preprocess_mask."""
    keys = bias.size(-1)
    return functional.pad(bias, (0, -keys % 8))[..., :keys] if keys % 8 else bias
