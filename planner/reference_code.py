"""Layers that have kernels of other packages (Mamba, short convolutions, linear attention) run in PyTorch's own code.

A kernel cannot be rehearsed: it takes no tensor without storage. transformers/integrations/hub_kernels.py wraps each
function that has one, and keeps the reference.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def kernel_packages(base: Any) -> tuple[str, ...]:
    """What is to be installed for the kernels of the model's layers, sorted; empty where they have none."""
    from transformers.integrations.hub_kernels import _PACKAGE_TO_DISTRIBUTION

    packages = {package for *_, package in _wrapped(base)}
    return tuple(sorted(_PACKAGE_TO_DISTRIBUTION.get(package, package) for package in packages))


@contextmanager
def reference_code(base: Any) -> Iterator[None]:
    """Inside, the model's layers run their references, whatever is installed."""
    wrapped = list(_wrapped(base))
    for module, name, function, _ in wrapped:
        setattr(module, name, function.__wrapped__)
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
