"""Checkpoints in the host's memory: what a layer was given waits there, and comes back when the layer runs again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

Saved = tuple[torch.device, torch.Tensor]


def offload_checkpoints(model: torch.nn.Module) -> None:
    """Have every checkpointed layer of `model` leave its inputs on the host.

    Checkpointing saves the inputs of a layer and nothing else of it, so these alone are moved: a layer's hidden state,
    micro_batch * seq_len * hidden_size values. Both ways the step waits for the copy.
    """
    module: Any
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = functools.partial(_checkpoint, module._gradient_checkpointing_func)


def _checkpoint(checkpoint: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`checkpoint` keeps what runs inside from these hooks, by hooks of its own."""
    with saved_tensors_hooks(to_host, to_device):
        return checkpoint(*args, **kwargs)


def to_host(tensor: torch.Tensor) -> Saved:
    """A copy in the host's memory, pinned if it comes from a GPU, and where it came from."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return tensor.device, host.copy_(tensor)


def to_device(saved: Saved) -> torch.Tensor:
    """A copy of what `to_host` has put away, where it came from."""
    device, host = saved
    return host.to(device, copy=True)
