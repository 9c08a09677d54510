"""The optimizer of one Recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoft.trainer.optimizers import spec_of
from autoft.trainer.recipe import Recipe

if TYPE_CHECKING:
    import torch


def build_optimizer(
    parameters: list[torch.nn.Parameter],
    recipe: Recipe,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    foreach: bool | None = None,
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `parameters`.

    foreach: adamw_torch takes all parameters at once, as PyTorch does by itself on a GPU; None leaves it to PyTorch.
    """
    build = spec_of(recipe.optimizer).build
    return build(parameters, lr=learning_rate, weight_decay=weight_decay, foreach=foreach)


def forget_steps(optimizer: Any) -> None:
    """Have `optimizer` be as before its first step."""
    optimizer.zero_grad()
    if hasattr(optimizer, "forget"):
        optimizer.forget()
    else:
        optimizer.state.clear()
