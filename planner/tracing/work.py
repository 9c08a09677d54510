"""What an operation asks of the device: arithmetic, bytes moved, kernels launched. Of shapes alone, for any device.

Shapes: A, N, K of a product; B batch, H heads, S queries, T keys, D head width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch.utils.flop_counter import flop_registry

from autoft.trainer.recipe import Dtype

aten = torch.ops.aten


class Kernel(NamedTuple):
    """kind: "product" of matrices, fused "attention", that of the memory-"efficient" kernel, "unpack" of 4-bit weights,
    or "other".

    flops and their dtype: of products and attention; 0 and "" for all else. moved_bytes: read and written, each tensor
    once.
    """

    kind: Literal["product", "attention", "efficient", "unpack", "other"]
    dtype: str
    flops: float
    moved_bytes: float


Work = Counter[Kernel]  # how often each is launched
Formula = Callable[..., list[Kernel]]

# Their tensors are made or looked at without a kernel
_NOTHING = frozenset((aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
                      aten._unsafe_view, aten._reshape_alias, aten.detach_, aten._local_scalar_dense))  # fmt: skip
# They read of their inputs only as much as they return
_LOOKED_UP = frozenset((aten.embedding, aten.index, aten.gather, aten.index_select, aten.nll_loss_forward))
# They do not read what they are given to write or to be like
_WRITTEN = frozenset((aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full,
                      aten.fill_, aten.zero_, aten.nll_loss_backward, aten.embedding_dense_backward))  # fmt: skip
# Of lists of tensors, one launch takes so many: depth_to_max_tensors in aten/native/cuda/MultiTensorApply.cuh, least
_TENSORS_PER_LAUNCH = 30


def kernels(func: Any, args: Any, kwargs: Any, result: Any) -> list[Kernel]:
    """What `func` launches on a device. Tensors that are not on meta are on the host and count nothing."""
    formula = _FORMULA_OF.get(func)
    if formula is None:
        formula = _FORMULA_OF[func] = _formula(func)
    return formula(*args, **kwargs, result=result)


def _formula(func: Any) -> Formula:
    packet, name = func.overloadpacket, func._schema.name
    if packet in _NOTHING:
        return lambda *_, **__: []
    if name in _FORMULAS:
        return _FORMULAS[name]
    flops = flop_registry.get(packet) or flop_registry.get(getattr(aten, name.removeprefix("aten::").rstrip("_"), None))
    if flops is not None:

        def multiplied(*args: Any, result: Any, **kwargs: Any) -> list[Kernel]:
            return [
                Kernel("product", _name(args[1].dtype), flops(*args, **kwargs, out_val=result), _size((args, result)))
            ]

        return multiplied
    changes_in_place = not func._schema.returns
    many = name.startswith("aten::_foreach")

    def moved(*args: Any, result: Any, **_: Any) -> list[Kernel]:
        written = _size(args if changes_in_place else result)
        if packet in _LOOKED_UP:
            size = 2 * written
        elif packet in _WRITTEN:
            size = written
        elif packet is aten.copy_:
            size = written + _size(args[1])
        else:
            size = written + _size(args)
        launches = -(-len(args[0]) // _TENSORS_PER_LAUNCH) if many else 1
        return [Kernel("other", "", 0.0, size / launches)] * launches if size else []

    return moved


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, outputs: int) -> Kernel:
    """a_..K times b_.. into out_..N, with N = outputs."""
    return Kernel("product", _name(a.dtype), 2.0 * a.numel() * outputs, _size((a, b, out)))


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, backward: bool = False, efficient: bool = False
) -> Kernel:
    """One fused kernel on q_BHSD, k_BGTD, v_BGTD: 2BHST(D + D) forward, half of it where half is masked.

    backward: five products for two (FlashAttention-2, arXiv:2307.08691, section 4.1), and every tensor twice.
    efficient: the memory-efficient kernel, which does the same at another rate.
    """
    batch, heads, length, dim = q.shape
    pairs = length * k.size(-2) / (2 if causal and length == k.size(-2) else 1)
    flops = 2.0 * batch * heads * pairs * (dim + v.size(-1))
    moved = _size((q, k, v)) + _size(q) // dim * v.size(-1)
    times = (2.5, 2) if backward else (1, 1)
    return Kernel("efficient" if efficient else "attention", _name(q.dtype), times[0] * flops, times[1] * moved)


def passed_over(*tensors: torch.Tensor) -> Kernel:
    """A kernel that reads or writes each of `tensors` once and multiplies no matrices."""
    return Kernel("other", "", 0.0, _size(tensors))


def product_dtypes(work: Work) -> list[Dtype]:
    """Dtypes in which matrices are multiplied."""
    return sorted({cast(Dtype, kernel.dtype) for kernel in work if kernel.flops})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(item: Any) -> int:
    """Bytes of a tensor on meta or of those in a list; a dimension that is only expanded counts once."""
    if isinstance(item, torch.Tensor):
        if not item.is_meta:
            return 0
        if 0 not in item.stride():
            return item.numel() * item.element_size()
        size = item.element_size()
        for length, stride in zip(item.shape, item.stride(), strict=True):
            size *= length if stride else 1
        return size
    if isinstance(item, (tuple, list)):
        return sum(_size(i) for i in item)
    return 0


def _gemm_4bit(a: torch.Tensor, packed: torch.Tensor, shape: Any, scales: torch.Tensor, *_: Any, result: Any,
               absmax_8bit: torch.Tensor | None = None, **__: Any) -> list[Kernel]:  # fmt: skip
    """Unpacked to the dtype of `a`, then multiplied, as bitsandbytes does it for all but a few rows."""
    weights = shape[0] * shape[1]
    unpacked = weights * a.element_size()
    return [
        Kernel("unpack", "", 0.0, _size((packed, scales, absmax_8bit)) + unpacked),
        Kernel("product", _name(a.dtype), 2.0 * a.numel() * shape[0], _size((a, result)) + unpacked),
    ]


def _unpack(packed: torch.Tensor, *rest: Any, result: Any, **_: Any) -> list[Kernel]:
    return [Kernel("unpack", "", 0.0, _size((packed, rest, result)))]


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, *_: Any, result: Any, **__: Any) -> list[Kernel]:
    """a_AK, its rows in groups, times b_EKN; or a_KA times b_AN in E groups of A: 2AKN either way."""
    return [product(a, b, result, b.size(-1))]


def _grouped_mm_backward(a: Any, b: Any, _offsets: Any, grad: Any, *, result: Any, **__: Any) -> list[Kernel]:
    return [product(grad, b, result[0], b.size(-2)), product(grad, a, result[1], a.size(-1))]


def _attention(q: Any, k: Any, v: Any, _dropout: float = 0.0, is_causal: bool = False, **_: Any) -> list[Kernel]:
    return [attention(q, k, v, causal=is_causal)]


def _attention_backward(
    _grad: Any, q: Any, k: Any, v: Any, _out: Any, _logsumexp: Any, _dropout: float, is_causal: bool, **_: Any
) -> list[Kernel]:
    return [attention(q, k, v, causal=is_causal, backward=True)]


_FORMULAS: dict[str, Formula] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::_grouped_mm": _grouped_mm,
    "transformers::grouped_mm_fallback": _grouped_mm,
    "transformers::grouped_mm_fallback_backward": _grouped_mm_backward,
    "bitsandbytes::gemm_4bit": _gemm_4bit,
    "bitsandbytes::dequantize_4bit": _unpack,
    "bitsandbytes::dequantize_blockwise": _unpack,
}
_FORMULA_OF: dict[Any, Formula] = {}
