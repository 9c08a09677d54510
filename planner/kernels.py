"""What the real device's kernels do that the shapes alone do not tell: attention, autocast, hidden temporaries.

Each rule names where it was read. `Kernels` applies them to a step that runs on meta tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autoft.units import MIB

Backend = Literal["flash", "efficient", "math"]


@dataclass(frozen=True, slots=True)
class Device:
    """capability: compute capability of a CUDA card; None is the CPU."""

    capability: tuple[int, int] | None

    @property
    def cuda(self) -> bool:
        return self.capability is not None

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of a cuBLAS handle: 4096 KiB twice and 16 KiB 8 times, Hopper 32 MiB; aten .../cuda/CublasHandlePool.cpp."""
        assert self.capability is not None
        return 32 * MIB if self.capability[0] == 9 else 2 * 4096 * 1024 + 8 * 16 * 1024


def attention_backend(
    device: Device, *, dtype: torch.dtype, head_dim: int, value_dim: int, grouped: bool, masked: bool
) -> Backend:
    """Which SDPA kernel CUDA takes, flash before efficient before math; aten .../transformers/cuda/sdp_utils.cpp.

    flash: 16 bits, compute capability from 8.0, no mask, head_dim to 256, equal for values.
    efficient: no grouped heads; bfloat16 from 8.0 on.
    """
    assert device.capability is not None
    half = dtype in (torch.float16, torch.bfloat16)
    if half and device.capability >= (8, 0) and not masked and head_dim == value_dim <= 256:
        return "flash"
    if not grouped and (dtype != torch.bfloat16 or device.capability >= (8, 0)):
        return "efficient"
    return "math"


class _FusedAttention(torch.autograd.Function):
    """q_BHSD, k_BGTD, v_BGTD -> out_BHSD, keeping its inputs, its output and a float32 log-sum-exp a query.

    flash: aten .../transformers/cuda/flash_attn/flash_api.cpp, mha_fwd and mha_bwd (softmax_d and dq_accum in float32,
    the sequence rounded up to 128 and the head to 32; keys' gradients with all heads first where these are grouped).
    efficient: aten .../transformers/cuda/attention.cu and attention_backward.cu (log-sum-exp rounded up to 32; delta).
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, backend: Backend) -> Any:
        batch, heads, length, _ = q.shape
        out = q.new_empty(batch, length, heads, v.size(-1)).transpose(1, 2)
        padded = -(-length // 32) * 32 if backend == "efficient" else length
        logsumexp = q.new_empty(batch, heads, padded, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.backend = backend
        return out

    @staticmethod
    def backward(ctx: Any, _grad: Any) -> Any:
        q, k, v, _, _ = ctx.saved_tensors
        batch, heads, length, dim = q.shape
        like = [t.new_empty(t.size(0), t.size(2), t.size(1), t.size(3)).transpose(1, 2) for t in (q, k, v)]
        if ctx.backend == "efficient":
            delta = q.new_empty(batch, heads, length, dtype=torch.float32)
        else:
            rounded, head = -(-length // 128) * 128, -(-dim // 32) * 32
            delta = q.new_empty(batch, heads, rounded, dtype=torch.float32)
            accumulator = q.new_empty(batch, rounded, heads, head, dtype=torch.float32)
            if k.size(1) != heads:
                expanded = [t.new_empty(batch, t.size(2), heads, t.size(3)) for t in (k, v)]
                del expanded
            del accumulator
        del delta
        return (*like, None)


class _HalfToFloatSoftmax(torch.autograd.Function):
    """softmax of float16 into float32 in one kernel, with no float32 copy of its input; aten .../cuda/SoftMax.cu."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x.new_empty(x.shape, dtype=torch.float32)
        ctx.save_for_backward(y)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        _ = ctx.saved_tensors
        result = grad.new_empty(grad.shape, dtype=ctx.dtype)
        product = torch.empty_like(grad)  # host_softmax_backward: tmp = grad * output
        del product
        return result


def _softmax_backward(grad: torch.Tensor, *_: Any, **__: Any) -> list[int]:
    return [grad.numel() * grad.element_size()]


CUDA_TRANSIENTS: dict[Any, Callable[..., list[int]]] = {
    # aten/native/cuda/SoftMax.cu, softmax_backward_cuda_out: `Tensor tmp = grad * output`
    torch.ops.aten._softmax_backward_data.default: _softmax_backward,
}

# torch 2.13 aten/src/ATen/autocast_mode.h: AT_FORALL_LOWER_PRECISION_FP, AT_FORALL_FP32, AT_FORALL_FP32_SET_OPT_DTYPE
_LOWER = frozenset(
    ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addr", "addbmm", "baddbmm",
     "conv1d", "conv2d", "conv3d", "conv_transpose1d", "chain_matmul", "multi_dot", "prelu", "einsum")
)  # fmt: skip
_CUDA_FLOAT32 = frozenset(
    ("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
     "tan", "pow", "__pow__", "__rpow__", "softplus", "layer_norm", "rms_norm", "group_norm", "nll_loss", "kl_div",
     "l1_loss", "smooth_l1_loss", "mse_loss", "dist", "renorm", "logsumexp", "norm", "cumprod", "cumsum", "prod", "sum")
)  # fmt: skip
_SOFTMAX = frozenset(("softmax", "log_softmax"))
_SDPA = functional.scaled_dot_product_attention


class Kernels(TorchFunctionMode):
    """Runs a step on meta tensors as `device` would: its attention kernels, its autocast, its fused softmax.

    backend: of attention, pinned; grouped heads are then repeated first where it cannot take them.
    """

    def __init__(self, device: Device, backend: Backend | None = None) -> None:
        super().__init__()
        self.device = device
        self.backend = backend
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> Kernels:
        with contextlib.ExitStack() as stack:
            self._stand_in(stack, torch, "clear_autocast_cache", self._clear_casts)
            # autocast knows no meta device; what is asked of it is answered for the CPU, where compute_loss switches it
            for name in ("is_autocast_enabled", "get_autocast_dtype"):
                asked = getattr(torch, name)
                self._stand_in(stack, torch, name, lambda device="cpu", asked=asked: asked("cpu"))
            if self.device.cuda:
                # TRL's fused head folds each tile of logits in a Triton kernel, which takes no memory
                import trl.kernels.chunked_logprob as fused

                for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                    self._stand_in(stack, fused, name, lambda *_, **__: None)
            self._undo = stack.pop_all()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        self._casts.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @staticmethod
    def _stand_in(stack: contextlib.ExitStack, module: Any, name: str, function: Any) -> None:
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, function)

    def _clear_casts(self) -> None:
        self._casts.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is _SDPA:
            return self._attention(*args, **kwargs)
        if name in _SOFTMAX:
            return self._softmax(func, args, kwargs)
        if torch.is_autocast_enabled("cpu"):
            if name in _LOWER:
                dtype = torch.get_autocast_dtype("cpu")
                args = tuple(self._lower(a, dtype) for a in args)
                kwargs = {key: self._lower(value, dtype) for key, value in kwargs.items()}
            elif name in _CUDA_FLOAT32 and self.device.cuda:
                args = tuple(_float32(a) for a in args)
                kwargs = {key: _float32(value) for key, value in kwargs.items()}
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
        if half and dtype is None and self.device.cuda and torch.is_autocast_enabled("cpu"):
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
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = (self._lower(t, dtype) for t in (query, key, value))
        grouped = enable_gqa and key.size(-3) != query.size(-3)
        backend: Backend
        if not self.device.cuda:
            backend = "flash"
        else:
            backend = self.backend or attention_backend(
                self.device,
                dtype=query.dtype,
                head_dim=query.size(-1),
                value_dim=value.size(-1),
                grouped=grouped,
                masked=attn_mask is not None,
            )
        if grouped and self.backend == "efficient":
            repeats = query.size(-3) // key.size(-3)
            key, value = key.repeat_interleave(repeats, dim=-3), value.repeat_interleave(repeats, dim=-3)
        if backend == "math":
            whole: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=grouped
            )[0]
            return whole
        if not self.device.cuda:
            out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
            return out
        fused: torch.Tensor = _FusedAttention.apply(query, key, value, backend)  # type: ignore[no-untyped-call]
        return fused


def _float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
