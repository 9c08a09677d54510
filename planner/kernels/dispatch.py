"""What the real device's kernels do that the shapes alone do not tell: attention, autocast, hidden temporaries.

Each rule names where it was read. `Kernels` applies them to a step that runs on meta tensors.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autoft.hooks import Hook
from autoft.planner.kernels.attention import (
    Backend,
    EfficientAttention,
    FlashAttention,
    aligned,
    as_bias,
    attention_backend,
    flash_package,
    flash_splits,
    math_attention,
)
from autoft.planner.kernels.four_bit import is_product_fused
from autoft.planner.kernels.reduction import reduction_scratch
from autoft.planner.kernels.rules import Device
from autoft.planner.tracing.trace import Scratch, count, stands_for
from autoft.planner.tracing.work import passed_over, product
from autoft.trainer.compat import bitsandbytes as bnb_hooks
from autoft.trainer.compat import torch as torch_hooks
from autoft.trainer.compat import transformers as hf_hooks
from autoft.trainer.compat import trl as trl_hooks
from autoft.trainer.runtime import environment

environment.import_libraries()  # bitsandbytes first: transformers and peft would create a context on the GPU by it
for hook in (torch_hooks.META_GROUPED_MM, hf_hooks.FLASH_ATTENTION, hf_hooks.GROUPED_MM, hf_hooks.MAYBE_AUTOCAST):
    hook.owner()  # imported now, and not while a trace looks on


class _HalfToFloatSoftmax(torch.autograd.Function):
    """softmax of float16 into float32 in one kernel, with no float32 copy of its input; aten .../cuda/SoftMax.cu."""

    @staticmethod
    @stands_for("softmax of float16 in float32", "aten/native/cuda/SoftMax.cu")
    def forward(ctx: Any, x: Any) -> Any:
        y = x.new_empty(x.shape, dtype=torch.float32)
        ctx.save_for_backward(y)
        ctx.dtype = x.dtype
        count(passed_over(x, y))
        return y

    @staticmethod
    @stands_for("softmax of float16 in float32", "aten/native/cuda/SoftMax.cu, host_softmax_backward")
    def backward(ctx: Any, grad: Any) -> Any:
        (y,) = ctx.saved_tensors
        result = grad.new_empty(grad.shape, dtype=ctx.dtype)
        product = torch.empty_like(grad)  # host_softmax_backward: tmp = grad * output
        count(passed_over(grad, y, product), passed_over(y, product, result))
        del product
        return result


class _FusedRmsNorm(torch.autograd.Function):
    """One kernel that keeps a float32 a row; native_functions.yaml, _fused_rms_norm, which meta takes apart."""

    @staticmethod
    @stands_for("fused RMS norm", "aten/native/cuda/layer_norm_kernel.cu, _fused_rms_norm_cuda")
    def forward(ctx: Any, x: Any, num_dims: int, weight: Any) -> Any:
        y = torch.empty_like(x)
        scale = x.new_empty(*x.shape[:-num_dims], *(1,) * num_dims, dtype=torch.float32)
        ctx.save_for_backward(x, scale, *(() if weight is None else (weight,)))
        count(passed_over(x, y))
        return y

    @staticmethod
    @stands_for("fused RMS norm", "aten/native/cuda/layer_norm_kernel.cu, _fused_rms_norm_backward_cuda")
    def backward(ctx: Any, grad: Any) -> Any:
        x, _, *weight = ctx.saved_tensors
        result = torch.empty_like(x)
        of_weight = torch.empty_like(weight[0]) if weight and ctx.needs_input_grad[2] else None
        count(passed_over(x, grad, result))
        return result, None, of_weight


_ARITHMETIC = (torch.ops.aten.add, torch.ops.aten.sub, torch.ops.aten.mul, torch.ops.aten.div)

_SUMS = (torch.ops.aten.sum.dim_IntList, torch.ops.aten.sum.default, torch.ops.aten.mean.dim)


def scratch(device: Device) -> dict[Any, Scratch]:
    """Scratch memory of `device`'s kernels, by operation."""
    if not device.cuda:
        return {
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: Scratch(_cpu_flash),
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: Scratch(_cpu_flash_backward),
            torch.ops.aten._safe_softmax.default: Scratch(_safe_softmax),
            torch.ops.bitsandbytes.gemm_4bit.default: Scratch(_cpu_gemm_4bit, before=True),
            torch.ops.bitsandbytes.optimizer_update_8bit_blockwise.default: Scratch(_cpu_adam_8bit),
            **{operation.Tensor: Scratch(_cpu_promoted, before=True) for operation in _ARITHMETIC},
        }
    return {
        torch.ops.aten._softmax_backward_data.default: Scratch(_softmax_backward),
        torch.ops.aten._safe_softmax.default: Scratch(_safe_softmax),
        torch.ops.aten._foreach_norm.Scalar: Scratch(_foreach_norm, before=True),
        torch.ops.aten.embedding_dense_backward.default: Scratch(_embedding_backward),
        torch.ops.aten._index_put_impl_.default: Scratch(_index_put, before=True),
        **dict.fromkeys(_SUMS, Scratch(functools.partial(reduction_scratch, device))),
        torch.ops.aten.linalg_vector_norm.default: Scratch(
            lambda x, _order=2, dims=None, *_, **__: reduction_scratch(device, x, dims)
        ),
        torch.ops.bitsandbytes.gemm_4bit.default: Scratch(
            functools.partial(_gemm_4bit, device), before=True, product=True
        ),
    }


def _softmax_backward(grad: torch.Tensor, *_: Any, **__: Any) -> list[int]:
    """aten/native/cuda/SoftMax.cu, softmax_backward_cuda_out: `Tensor tmp = grad * output`."""
    return [grad.numel() * grad.element_size()]


def _safe_softmax(scores: torch.Tensor, *_: Any, **__: Any) -> list[int]:
    """aten .../transformers/attention.cpp: `isneginf` of the result, one byte each."""
    return [scores.numel()]


def _foreach_norm(tensors: list[torch.Tensor], *_: Any, **__: Any) -> list[int]:
    """aten/native/cuda/ForeachReduceOp.cu: for each tensor a float32 a chunk of 65,536 of the longest one."""
    return [4 * len(tensors) * -(-max(t.numel() for t in tensors) // 65536)]


def _embedding_backward(grad: torch.Tensor, indices: torch.Tensor, vocabulary: int, *_: Any, **__: Any) -> list[int]:
    """aten/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu: above 3,072 tokens these are sorted first.

    Lists of a number for each token, for each word and for each part of a word's tokens, of ten at most; then a sum in
    float32 for each part. Leaves out: what cub takes to sort.
    """
    tokens = indices.numel()
    if tokens <= 3072:
        return []
    words = min(tokens, vocabulary)
    parts = tokens // 10 + words
    return [*[8 * tokens] * 3, 8, *[8 * words] * 2, 8, 8 * parts, max(4, grad.element_size()) * parts * grad.size(-1)]


def _index_put(_: torch.Tensor, indices: list[torch.Tensor | None], *__: Any, **___: Any) -> list[int]:
    """aten/native/cuda/Indexing.cu, index_put_with_sort_kernel: places in one number, sorted, with where they were.

    Leaves out: what cub takes to sort.
    """
    return [8 * max(index.numel() for index in indices if index is not None)] * 4


def _gemm_4bit(
    device: Device,
    a: torch.Tensor,
    _b: torch.Tensor,
    shape: Any,
    _absmax: torch.Tensor,
    blocksize: int,
    _quant_type: str,
    _bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    *_: Any,
) -> list[int]:
    """bitsandbytes/backends/cuda/ops.py: many rows are multiplied by a dequantized copy of the weights.

    Takes arguments by position, as the dispatcher hands them on however they were named.
    """
    rows, (columns, inner) = a.numel() // a.size(-1), shape
    if inner % blocksize == 0 and fused_4bit_product(device, a.dtype, rows, columns, inner):
        return []
    scales = 4 * (columns * inner // blocksize)
    return [*([] if absmax_8bit is None else [scales, scales]), columns * inner * a.element_size()]


def fused_4bit_product(device: Device, dtype: torch.dtype, rows: int, columns: int, inner: int) -> bool:
    """Whether bitsandbytes multiplies (rows, inner) by packed (columns, inner) without a dequantized copy.

    By its own rule; of a card whose multiprocessors are not known the answer is no.
    """
    if device.multiprocessors is None:
        return False
    assert device.capability is not None
    return is_product_fused(device.capability, device.multiprocessors, dtype, rows, columns, inner)


# Assumption, as values are not known: an outlier, of 6 or more, in one column of a thousand (arXiv:2208.07339, 3.1)
_COLUMNS_PER_OUTLIER = 1000


@stands_for("rows in int8", "bitsandbytes/backends/cuda/ops.py, int8_vectorwise_quant")
def _int8_rows(a: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """a_RK in int8, a float32 scale a row, and the columns with an outlier, which takes a look at every value."""
    if a.dim() != 2:
        raise ValueError("bitsandbytes multiplies no 8-bit layer by inputs of more than three dimensions")
    scales_R = a.new_empty(a.numel() // a.size(-1), dtype=torch.float32)
    out_RK = torch.empty_like(a, dtype=torch.int8)
    outliers = None
    if threshold > 0:
        is_outlier = a.abs() >= threshold
        is_outlier.any(dim=0)
        outliers = a.new_empty(max(1, a.size(-1) // _COLUMNS_PER_OUTLIER), dtype=torch.int64)
    return out_RK, scales_R, outliers


@stands_for("product in int8", "bitsandbytes/backends/default/ops.py, int8_mixed_scaled_mm; cuda/ops.py")
def _int8_product(
    a: torch.Tensor,
    rounded: torch.Tensor,
    weight: torch.Tensor,
    _scales: torch.Tensor,
    weight_scales: torch.Tensor,
    outliers: torch.Tensor,
    _bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """a_RK by weight_NK: int32 sums, float16, the input's dtype; columns with an outlier on their own, then added."""
    columns_Rk = a[:, outliers].contiguous()
    weights_kN = (weight[:, outliers].contiguous() * weight_scales.view(-1, 1)).to(a.dtype).t()
    sums_RN = rounded.new_empty(rounded.size(0), weight.size(0), dtype=torch.int32)
    halves_RN = torch.empty_like(sums_RN, dtype=torch.float16)
    # at the rate of 16 bits: an assumption on the slow side
    count(product(a, weight, sums_RN, weight.size(0)), passed_over(sums_RN, halves_RN))
    out_RN = halves_RN.to(a.dtype)
    del sums_RN, halves_RN
    return out_RN.addmm(columns_Rk, weights_kN), columns_Rk


def _int8_matmul(device: Device, a: Any, weight: Any, out: Any = None, state: Any = None, **bias: Any) -> torch.Tensor:
    """bitsandbytes/autograd/_functions.py, matmul: a CPU trains on a dequantized copy of the weight."""
    from bitsandbytes.autograd._functions import MatMul8bitFp, MatMul8bitLt

    function = MatMul8bitLt if device.cuda or not state.is_training else MatMul8bitFp
    return function.apply(a, weight, out, bias.get("bias"), state)  # type: ignore[no-any-return]


def _flash_blocks(length: int, keys: int) -> int:
    """Queries times keys of a block; aten/native/cpu/FlashAttentionKernel.cpp, flash_attention_kernel_impl."""
    return _flash_queries(length) * min(keys, 512)


def _flash_queries(length: int) -> int:
    return min(length, 256 if length >= 768 else 64 if length >= 192 else 32)


def _cpu_flash(query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> list[int]:
    """cpu_flash_attention: a float32 buffer a thread, and one in the inputs' dtype if that is narrower.

    Leaves out: packed keys and values, on processors with AMX.
    """
    length, head = query.shape[-2:]
    queries, block = _flash_queries(length), _flash_blocks(length, key.size(-2))
    narrow = block * query.element_size() if query.element_size() < 4 else 0
    return [n * torch.get_num_threads() for n in (4 * (block + 2 * queries + queries * head), narrow)]


def _cpu_flash_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> list[int]:
    """cpu_flash_attention_backward: two blocks a thread, its row sums, and a gradient laid out as it wants it."""
    length = query.size(-2)
    block = 2 * _flash_blocks(length, key.size(-2))
    narrow = block * query.element_size() if query.element_size() < 4 else 0
    copied = 0 if grad.transpose(1, 2).is_contiguous() else grad.numel() * grad.element_size()
    return [copied, *(n * torch.get_num_threads() for n in (4 * block, narrow, 4 * _flash_queries(length)))]


def _cpu_gemm_4bit(
    a: torch.Tensor,
    _packed: Any,
    shape: Any,
    _absmax: torch.Tensor,
    _blocksize: int,
    _quant_type: str,
    _bias: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    *_: Any,
) -> list[int]:
    """bitsandbytes/backends/default/ops.py: the whole weight in the input's dtype, and its scales if it packs them."""
    return [shape[0] * shape[1] * a.element_size(), 0 if scales is None else 4 * scales.numel()]


def _cpu_adam_8bit(_name: str, gradient: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> list[int]:
    """bitsandbytes/backends/cpu/ops.py: float32 states, gradient, root, denominator, and a 16-bit weight."""
    copies = 5 if weight.dtype == torch.float32 else 6
    return [4 * gradient.numel()] * copies


def _cpu_promoted(a: Any, b: Any, **_: Any) -> list[int]:
    """aten/TensorIterator.cpp, compute_types: on a CPU an input of the narrower dtype is copied into the wider one."""
    wider = torch.result_type(a, b)
    return [wider.itemsize * t.numel() for t in (a, b) if isinstance(t, torch.Tensor) and t.dtype != wider]


def _cpu_layer_norm(result: Any, x: torch.Tensor, _shape: Any, weight: torch.Tensor | None = None, *_: Any) -> Any:
    """Means and deviations in the weight's dtype, not in float32; aten/native/layer_norm.cpp, layer_norm_cpu."""
    out, mean, deviation = result
    dtype = x.dtype if weight is None else weight.dtype
    return out, mean.to(dtype), deviation.to(dtype)


CPU_RESULTS: dict[Any, Callable[..., Any]] = {torch.ops.aten.native_layer_norm.default: _cpu_layer_norm}


# torch 2.13 aten/src/ATen/autocast_mode.h: AT_FORALL_LOWER_PRECISION_FP, AT_FORALL_FP32, AT_FORALL_FP32_SET_OPT_DTYPE
_LOWER = frozenset(
    ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addr", "addbmm", "baddbmm",
     "conv1d", "conv2d", "conv3d", "conv_transpose1d", "chain_matmul", "multi_dot", "prelu", "einsum")
)  # fmt: skip
_CUDA_FLOAT32 = frozenset(
    ("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
     "tan", "pow", "__pow__", "__rpow__", "softplus", "layer_norm", "rms_norm", "group_norm", "nll_loss", "kl_div",
     "l1_loss", "smooth_l1_loss", "mse_loss", "dist", "renorm", "logsumexp", "norm", "cumprod", "cumsum")
)  # fmt: skip
# These read 16 bits and add in float32, with no copy; aten/native/ReduceOps.cpp, make_reduction_from_out_ty
_CUDA_SUMS = frozenset(("prod", "sum"))
_SOFTMAX = frozenset(("softmax", "log_softmax"))
_SDPA = functional.scaled_dot_product_attention


_autocast_enabled = torch.is_autocast_enabled  # torch's own, for which `Kernels` puts an answer of its own


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """One kernel that keeps a mask of one byte each; aten/native/Dropout.cpp, is_fused_kernel_acceptable."""
    return torch.ops.aten.native_dropout(x, p, True)[0] if training and 0 < p < 1 and not inplace else None


def _rms_norm(x: torch.Tensor, shape: Any, weight: Any = None, *_: Any, **__: Any) -> Any:
    """In float32 under autocast, as CUDA's list says."""
    if _autocast_enabled("cpu"):
        x, weight = _float32(x), _float32(weight)
    return _FusedRmsNorm.apply(x, len(shape), weight)  # type: ignore[no-untyped-call]


def _norm(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Under autocast a float32 result, with no float32 copy of what it is the norm of (linalg_vector_norm, by rows)."""
    if not _autocast_enabled("cpu") or kwargs.get("dim") is None:
        return None
    return torch.linalg.norm(x, *args, **kwargs | {"dtype": torch.float32})


class _MaskedRows(torch.autograd.Function):
    """x[mask] where the mask, whose values are not known, holds throughout: the trained tokens of the fused head.

    aten/native/TensorAdvancedIndexing.cpp: the mask is kept, and its places are looked up again in the backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, mask: Any) -> Any:
        ctx.save_for_backward(mask)
        ctx.like = x.shape, x.dtype
        return torch.ops.aten.index.Tensor(x, _places(mask))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (mask,) = ctx.saved_tensors
        shape, dtype = ctx.like
        result = grad.new_zeros(shape, dtype=dtype)
        return torch.ops.aten._index_put_impl_(result, _places(mask), grad, True), None


def _places(mask: torch.Tensor) -> list[torch.Tensor]:
    """Where the mask holds, in each of its dimensions."""
    return list(torch.empty(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device).unbind(1))


def _masked_rows(x: torch.Tensor, index: Any) -> Any:
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool:
        return None
    return _MaskedRows.apply(x, index)  # type: ignore[no-untyped-call]


class _MaskedScatter(torch.autograd.Function):
    """The way back from `_MaskedRows`: zeros with `source` where the mask holds; masked_scatter of the same file.

    The places in `source` are counted in a number for each element of the mask. The backward picks the gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, mask: Any, _source: Any) -> Any:
        ctx.save_for_backward(mask)
        result = torch.empty_like(x)
        counted = torch.empty(mask.shape, dtype=torch.long, device=mask.device)
        del counted
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return None, None, torch.ops.aten.index.Tensor(grad, _places(mask))


def _masked_scatter(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> Any:
    return _MaskedScatter.apply(x, mask, source)  # type: ignore[no-untyped-call]


_CUDA_FORMS: dict[str, Callable[..., Any]] = {
    "dropout": _dropout,
    "rms_norm": _rms_norm,
    "linalg_norm": _norm,
    "__getitem__": _masked_rows,
    "masked_scatter": _masked_scatter,
}


Treatment = Literal["none", "attention", "softmax", "form", "lower", "float32", "sum"]
_TREATMENTS: dict[Any, Treatment] = {}  # as there are few functions, and each is called often


def _is_half(x: Any = None, *_: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)


def _treatment(func: Any) -> Treatment:
    """What `Kernels` does with a function of torch's; "form": CUDA has a kernel of its own for it."""
    name = getattr(func, "__name__", "")
    if func is _SDPA:
        return "attention"
    if name in _SOFTMAX:
        return "softmax"
    if name in _LOWER:
        return "lower"
    if name in _CUDA_FLOAT32:
        return "float32"
    if name in _CUDA_SUMS:
        return "sum"
    return "form" if name in _CUDA_FORMS else "none"


class Kernels(TorchFunctionMode):
    """Runs a step on meta tensors as `device` would: its attention kernels, its autocast, its fused softmax.

    backend: of attention, pinned; a loop that pins the memory-efficient one repeats grouped heads first.
    packed: rows hold several examples each.
    """

    def __init__(self, device: Device, backend: Backend | None = None, *, packed: bool = False) -> None:
        super().__init__()
        self.device = device
        self.backend = backend
        self.packed = packed
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> Kernels:
        flash = functools.partial(flash_package, self.device, self.packed)
        stand_ins: dict[Hook, Any] = {
            torch_hooks.CLEAR_AUTOCAST_CACHE: self._clear_casts,
            # autocast knows no meta device; what is asked of it is answered for the CPU, where compute_loss sets it.
            # Asked of no device, as PEFT's 4-bit layers do, torch answers for CUDA, and on the CPU that is a no
            torch_hooks.AUTOCAST_ENABLED: self._answered(torch.is_autocast_enabled),
            torch_hooks.AUTOCAST_DTYPE: self._answered(torch.get_autocast_dtype),
            torch_hooks.AUTOCAST_INIT: _on_cpu(torch.autocast.__init__),
            torch_hooks.META_GROUPED_MM: _grouped_product,
            bnb_hooks.MATMUL: functools.partial(_int8_matmul, self.device),
            bnb_hooks.INT8_ROWS: _int8_rows,
            bnb_hooks.INT8_PRODUCT: _int8_product,
            hf_hooks.FLASH_ATTENTION: flash,
        }
        if self.device.cuda:
            # transformers/integrations/moe.py: below 8.0 its own loop over the experts takes torch's place
            modern = self.device.capability >= (8, 0)  # type: ignore[operator]
            stand_ins |= {
                hf_hooks.GROUPED_MM: lambda *_, **__: modern,
                # TRL's fused head folds each tile of logits in a Triton kernel, which takes no memory
                trl_hooks.USE_TRITON: lambda _: True,
                trl_hooks.FORWARD_TILE: lambda tile, *_, **__: count(passed_over(tile)),
                trl_hooks.BACKWARD_TILE: lambda tile, *_, **__: count(passed_over(tile, tile)),
                trl_hooks.ADDMM: lambda acc, a, b: count(product(a, b, acc, b.size(-1))),
            }
        with contextlib.ExitStack() as stack:
            for hook, stand_in in stand_ins.items():
                stack.enter_context(hook.replaced_by(stand_in))
            autocast = hf_hooks.MAYBE_AUTOCAST
            for module in _users_of(autocast.name, len(sys.modules)):
                stack.callback(setattr, module, autocast.name, getattr(module, autocast.name))
                setattr(module, autocast.name, _on_cpu(autocast.fetch()))
            self._undo = stack.pop_all()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        self._casts.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _answered(self, asked: Callable[[str], Any]) -> Callable[..., Any]:
        return lambda device="cuda": asked("cpu" if self.device.cuda or device != "cuda" else "cuda")

    def _clear_casts(self) -> None:
        self._casts.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        treatment = _TREATMENTS.get(func)
        if treatment is None:
            treatment = _TREATMENTS[func] = _treatment(func)
        if treatment == "none":
            return func(*args, **kwargs)
        if treatment == "attention":
            return self._attention(*args, **kwargs)
        if treatment == "softmax":
            return self._softmax(func, args, kwargs)
        if self.device.cuda:
            known = _CUDA_FORMS.get(func.__name__)
            if known is not None:
                result = known(*args, **kwargs)
                if result is not None:
                    return result
        if _autocast_enabled("cpu"):
            if treatment == "lower":
                dtype = torch.get_autocast_dtype("cpu")
                args, kwargs = _cast(lambda value: self._lower(value, dtype), args, kwargs)
            elif treatment == "float32" and self.device.cuda:
                args, kwargs = _cast(_float32, args, kwargs)
            elif treatment == "sum" and self.device.cuda and _is_half(*args) and kwargs.get("dtype") is None:
                kwargs = kwargs | {"dtype": torch.float32}
        return func(*args, **kwargs)

    def _lower(self, value: Any, dtype: torch.dtype) -> Any:
        """As autocast casts; those of trained float32 leaves live until it ends (autocast_mode.cpp, cached_cast)."""
        if not isinstance(value, torch.Tensor) or value.dtype == dtype or not value.is_floating_point():
            return value
        if not (value.dtype == torch.float32 and value.requires_grad and value.is_leaf):
            return value.to(dtype)
        kept = self._casts.get(id(value))
        if kept is None:
            kept = self._casts[id(value)] = (value, value.to(dtype))
        return kept[1]

    def _softmax(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, dtype = args[0], kwargs.get("dtype")
        half = isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)
        if half and dtype is None and self.device.cuda and _autocast_enabled("cpu"):
            dtype = kwargs["dtype"] = torch.float32
        fused = isinstance(x, torch.Tensor) and x.dtype == torch.float16  # SoftMax.cu: "supported for Half type only"
        if fused and dtype == torch.float32 and self.device.cuda and func.__name__ == "softmax":
            return _HalfToFloatSoftmax.apply(x)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if _autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            (query, key, value), _ = _cast(lambda t: self._lower(t, dtype), (query, key, value), {})
        grouped = enable_gqa and key.size(-3) != query.size(-3)
        backend: Backend
        if not self.device.cuda:
            if attn_mask is not None:
                attn_mask = as_bias(attn_mask, query.dtype)
            # aten .../transformers/sdp_utils_cpp.cpp, use_flash_attention_cpp
            heads_fit = enable_gqa or query.size(-3) == key.size(-3) == value.size(-3)
            dims_fit = query.size(-1) == key.size(-1) == value.size(-1)
            backend = "flash" if heads_fit and dims_fit and dropout_p == 0 else "math"
        else:
            backend = self.backend or attention_backend(
                self.device,
                dtype=query.dtype,
                head_dim=query.size(-1),
                value_dim=value.size(-1),
                heads=query.size(-3),
                key_heads=key.size(-3),
                grouped=enable_gqa,
                masked=attn_mask is not None,
            )
        if grouped and self.backend == "efficient":
            repeats = query.size(-3) // key.size(-3)
            key, value = key.repeat_interleave(repeats, dim=-3), value.repeat_interleave(repeats, dim=-3)
        if backend == "math":
            cuda = self.device.cuda
            return math_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, grouped=grouped, cuda=cuda)
        if not self.device.cuda:
            out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
            return out
        dim = query.size(-1)
        fused: torch.Tensor
        if backend == "flash":
            padding = -dim % 8  # attention.cpp, pad_last_dim
            if padding:
                query, key, value = (functional.pad(t, (0, padding)) for t in (query, key, value))
            batch, heads, length, _ = query.shape
            splits = flash_splits(self.device, batch, heads, length, key.size(2), dim + padding)
            fused = FlashAttention.apply(query, key, value, splits, is_causal)  # type: ignore[no-untyped-call]
            return fused[..., :dim] if padding else fused
        bias = None if attn_mask is None else aligned(as_bias(attn_mask, query.dtype))
        fused = EfficientAttention.apply(query, key, value, bias, self.device, is_causal)  # type: ignore[no-untyped-call]
        return fused


def _grouped_product(mat_a: Any, mat_b: Any, *, offs: Any, **_: Any) -> torch.Tensor:
    """Of tokens_SK, sorted by expert, and weights_EKN, or the like in a backward; rows padded to 16 bytes.

    On a device float32 and float16 are taken too, which torch's own form for meta refuses, and nothing is made beside
    the result; aten .../native/GroupedMMUtils.h, create_grouped_gemm_output_tensor.
    """
    groups = () if mat_a.dim() != mat_b.dim() else (offs.size(0) if mat_a.dim() == 2 else mat_a.size(0),)
    rows, columns = mat_a.size(-2), mat_b.size(-1)
    padded = -(-columns * mat_a.element_size() // 16) * 16 // mat_a.element_size()
    strides = (*(rows * padded for _ in groups), padded, 1)
    return mat_a.new_empty_strided((*groups, rows, columns), strides)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1)
def _users_of(name: str, num_modules: int) -> list[Any]:
    """Loaded model files of transformers that have imported a function of that name.

    num_modules: how many modules are loaded; the answer is remembered for as long as it stays so.
    """
    modules = dict(itertools.islice(sys.modules.items(), num_modules))
    return [
        module for path, module in modules.items() if path.startswith("transformers.models.") and name in vars(module)
    ]


def _on_cpu(function: Any) -> Any:
    """`function`, which is given a type of device among its first arguments, told of the CPU in place of meta."""

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        args = tuple("cpu" if isinstance(a, str) and a == "meta" else a for a in args)
        if kwargs.get("device_type") == "meta":
            kwargs["device_type"] = "cpu"
        return function(*args, **kwargs)

    return told


def _cast(function: Callable[[Any], Any], args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Each argument cast, the last first: GCC's order of evaluation in WrapFunction_ of autocast_mode.h."""
    named = {key: function(value) for key, value in reversed(kwargs.items())}
    return tuple(reversed([function(value) for value in reversed(args)])), named


def _float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
