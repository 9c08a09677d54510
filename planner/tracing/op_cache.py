"""What does an operation make of tensors of these shapes? Asked of PyTorch once, then remembered: layers are alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from autoft.planner.tracing.work import Kernel, kernels

MOST = 50_000  # outcomes that are remembered; a recipe of a large model has some hundreds


class Outcome(NamedTuple):
    """made: (shape, strides, dtype) of each tensor that is returned, None where none is. many: they come as a tuple.

    Without made the first argument is returned. kernels: that are launched.
    """

    made: tuple[tuple[Any, ...] | None, ...] | None
    many: bool
    kernels: list[Kernel]

    def again(self, args: Any) -> Any:
        """What the operation returns when it is called with `args`."""
        if self.made is None:
            return args[0]
        tensors = tuple(None if made is None else _empty(*made) for made in self.made)
        return tensors if self.many else tensors[0]


_OUTCOMES: dict[Any, Outcome] = {}


def recall(key: Any) -> Outcome | None:
    """The outcome of an operation that was called with like arguments; key: from `key_of`."""
    return _OUTCOMES.get(key)


def key_of(func: Any, args: Any, kwargs: Any) -> Any:
    """All that the outcome depends on; None where it is not worth remembering, or values on the host have a say."""
    parts = [func]
    for argument in args:
        if isinstance(argument, torch.Tensor):
            if not argument.is_meta:
                return None
            parts += (argument.shape, argument.stride(), argument.dtype)
        elif isinstance(argument, (list, tuple)):
            if any(isinstance(item, torch.Tensor) for item in argument):
                return None
            parts.append(tuple(argument))
        else:
            parts += (argument.__class__, argument)
    for name, argument in kwargs.items():
        if isinstance(argument, torch.Tensor):
            if not argument.is_meta:
                return None
            argument = (argument.shape, argument.stride(), argument.dtype)
        elif isinstance(argument, (list, tuple)):
            return None
        parts += (name, argument.__class__, argument)
    return tuple(parts)


def learn(key: Any, func: Any, args: Any, kwargs: Any, result: Any) -> list[Kernel]:
    """Remember what `func` has returned, if nothing but shapes decides it; the kernels that it launches."""
    launched = kernels(func, args, kwargs, result)
    if key is None:
        return launched
    if len(_OUTCOMES) >= MOST:
        _OUTCOMES.clear()
    if func._schema.is_mutable:
        if args and result is args[0] and key_of(func, args, kwargs) == key:
            _OUTCOMES[key] = Outcome(None, False, launched)
        return launched
    results = result if isinstance(result, (tuple, list)) else (result,)
    if all(_is_new(tensor, args) for tensor in results):
        made = tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in results)
        _OUTCOMES[key] = Outcome(made, isinstance(result, (tuple, list)), launched)
    return launched


def _is_new(tensor: Any, args: Any) -> bool:
    """Whether `_empty` makes the like of it: a tensor with a storage of its own, no larger than it."""
    if tensor is None:
        return True
    if not isinstance(tensor, torch.Tensor) or not tensor.is_meta:
        return False
    storage = tensor.untyped_storage()
    taken = [a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)]
    like = _empty(tensor.shape, tensor.stride(), tensor.dtype)
    return storage._cdata not in taken and storage.nbytes() == like.untyped_storage().nbytes()


def _empty(shape: Any, strides: Any, dtype: Any) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
