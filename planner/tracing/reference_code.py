"""Layers that have kernels of other packages (Mamba, short convolutions, linear attention) run in PyTorch's own code.

A kernel cannot be rehearsed: it takes no tensor without storage. transformers/integrations/hub_kernels.py wraps each
function that has one, and keeps the reference. What a step takes with the kernels is rehearsed by what they must keep:
their inputs and outputs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from autoft.planner.tracing.trace import Trace, no_modes
from autoft.trainer.compat.torch import FLATTEN_TREE, UNFLATTEN_TREE
from autoft.trainer.compat.transformers import KERNEL_PACKAGES

flatten_tree = FLATTEN_TREE.fetch()
unflatten_tree = UNFLATTEN_TREE.fetch()


def kernel_packages(base: Any) -> tuple[str, ...]:
    """What is to be installed for the kernels of the model's layers, sorted; empty where they have none."""
    distributions = KERNEL_PACKAGES.fetch()
    packages = {package for *_, package in _wrapped(base)}
    return tuple(sorted(distributions.get(package, package) for package in packages))


@contextmanager
def reference_code(base: Any, *, as_kernels: bool = False) -> Iterator[None]:
    """Inside, the model's layers run their references, whatever is installed.

    as_kernels: a reference keeps no more than a kernel would, its inputs and outputs, and takes no time.
    """
    wrapped = list(_wrapped(base))
    for module, name, function, _ in wrapped:
        reference = function.__wrapped__
        setattr(module, name, _as_kernel(reference) if as_kernels else reference)
    try:
        yield
    finally:
        for module, name, function, _ in wrapped:
            setattr(module, name, function)


def _wrapped(base: Any) -> Iterator[tuple[ModuleType, str, Any, str]]:
    """(module of the model's code, name of a function there, the function, the package that has its kernel)."""
    for code in sorted({type(module).__module__ for module in base.modules()}):
        if not code.startswith("transformers.models."):
            continue
        for name, function in vars(sys.modules[code]).items():
            if inspect.isfunction(function) and hasattr(function, "__wrapped__"):
                free = inspect.getclosurevars(function).nonlocals
                if "is_new_implementation" in free:
                    yield sys.modules[code], name, function, free["package"]


def _as_kernel(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as one operation: its forward makes its outputs alone, its backward the gradients of its inputs."""

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, inputs = flatten_tree((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        outputs: list[Any] = []

        def run(*tensors: torch.Tensor) -> list[Any]:
            given = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            positional, named = unflatten_tree(given, inputs)
            results: list[Any]
            results, structure = flatten_tree(reference(*positional, **named))
            outputs.append(structure)
            return results

        results = _Opaque.apply(run, *(leaves[place] for place in places))  # type: ignore[no-untyped-call]
        return unflatten_tree(list(results), outputs[0])

    return call


class _Opaque(torch.autograd.Function):
    """A function of which only the results are seen by the mode that traces."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., list[Any]], *tensors: torch.Tensor) -> tuple[Any, ...]:
        with no_modes(), Trace({}):  # what is counted inside goes to a trace that nobody reads
            shapes = run(*tensors)
        ctx.save_for_backward(*tensors)
        return tuple(torch.empty_like(each) if isinstance(each, torch.Tensor) else each for each in shapes)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return (None, *(torch.empty_like(tensor) if needed else None for tensor, needed in wanted))
