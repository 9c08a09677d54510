"""Run a script so that masks, positions and counts on the described card are right, and nothing else is touched.

    python standin.py --card t4 -- python values.py step.py ...

`truth/` runs every operation through a dispatch mode, and PyTorch's autograd does not add gradients in place while one
looks on: a backward then takes other memory. Here a few operations on whole numbers and booleans have kernels of their
own instead. Each runs the card's kernel first, with its allocations, and then on the CPU over the same memory.
"""

from __future__ import annotations

import ctypes
import runpy
import sys
from typing import Any

import torch
from torch.utils._pytree import tree_map

MOST_ELEMENTS = 1 << 22
WHOLE = (
    "ne.Scalar", "ne.Tensor", "eq.Scalar", "eq.Tensor", "lt.Scalar", "lt.Tensor", "le.Scalar", "le.Tensor",
    "gt.Scalar", "gt.Tensor", "ge.Scalar", "ge.Tensor", "all", "all.dim", "any", "any.dim", "sum",
    "sum.dim_IntList", "cumsum", "add.Tensor", "sub.Tensor", "bitwise_and.Tensor", "bitwise_or.Tensor",
    "bitwise_not", "logical_and", "logical_or", "logical_not", "clamp", "clamp_min", "arange.start_out",
    "fill_.Scalar", "zero_", "copy_", "cat", "index.Tensor",
)  # fmt: skip
SIZED_BY_VALUES = ("nonzero",)


def install() -> torch.library.Library:
    """The kernels, for as long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL")
    for name in WHOLE:
        library.impl(name, _also_here(name), "CUDA", with_keyset=True, allow_override=True)
    for name in SIZED_BY_VALUES:
        library.impl(name, _sized_here(name), "CUDA", allow_override=True)
    return library


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _also_here(name: str) -> Any:
    func, kernel = _overload(name), torch.library.get_kernel(f"aten::{name}", "CUDA")

    tensors = [isinstance(argument.type, torch.TensorType) for argument in func._schema.arguments]

    def run(keys: Any, *args: Any, **kwargs: Any) -> Any:
        # a number that stood for a tensor comes as a number
        pairs = zip(tensors, args, strict=False)
        given = [torch.tensor(a) if is_tensor and isinstance(a, int | float) else a for is_tensor, a in pairs]
        out = kernel.call_boxed(keys, *given, **kwargs)
        made = out if isinstance(out, torch.Tensor) else None
        if made is not None and _is_whole(made) and 0 < made.numel() <= MOST_ELEMENTS:
            found = func(*tree_map(_seen_if_whole, args), **_on_host(kwargs))
            if found.data_ptr() != made.data_ptr():
                _seen(made).copy_(found)
        return out

    return run


def _sized_here(name: str) -> Any:
    """Found on the CPU alone: the card's kernel would read its count from memory that an earlier tensor has left."""
    func = _overload(name)

    def run(*args: Any, **kwargs: Any) -> Any:
        found = func(*tree_map(_seen_if_whole, args), **_on_host(kwargs))
        made = torch.empty(found.shape[::-1], dtype=found.dtype, device="cuda").t()
        if found.numel():
            _seen(made).copy_(found)
        return made

    return run


def _is_whole(tensor: Any) -> bool:
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _seen(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a CPU tensor."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    room = (ctypes.c_char * (span * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(room, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


def _seen_if_whole(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_cuda:
        return value
    if value.numel() == 0:
        return torch.empty(value.shape, dtype=value.dtype)
    return _seen(value)


def _on_host(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = {key: _seen_if_whole(value) for key, value in kwargs.items()}
    if isinstance(kwargs.get("device"), torch.device):
        kwargs["device"] = torch.device("cpu")
    return kwargs


if __name__ == "__main__":
    kept = install()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(__import__("pathlib").Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
