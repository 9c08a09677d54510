"""The optimizer of one Recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """AdamW over `parameters`; 8-bit states through bitsandbytes (arXiv:2110.02861).

    foreach: adamw_torch takes all parameters at once, as PyTorch does by itself on a GPU; None leaves it to PyTorch.
    """
    import torch

    settings: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay}
    if recipe.optimizer == "adamw_torch":
        return torch.optim.AdamW(parameters, foreach=foreach, **settings)
    if recipe.optimizer == "adamw_torch_fused":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    if recipe.optimizer == "paged_adamw_8bit":
        from autoft.trainer.paged import PagedAdamW

        return PagedAdamW(parameters, **settings)
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return optimizer


def forget_steps(optimizer: Any) -> None:
    """Have `optimizer` be as before its first step."""
    optimizer.zero_grad()
    if hasattr(optimizer, "forget"):
        optimizer.forget()
    else:
        optimizer.state.clear()
