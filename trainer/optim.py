"""The optimizer of one Recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoft.trainer.recipe import Recipe

if TYPE_CHECKING:
    import torch


def build_optimizer(
    model: torch.nn.Module, recipe: Recipe, *, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """AdamW over the trainable weights of `model`; 8-bit and paged states through bitsandbytes (arXiv:2110.02861)."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay}
    if recipe.optimizer == "adamw_torch":
        return torch.optim.AdamW(trainable, **settings)
    import bitsandbytes as bnb

    make = bnb.optim.AdamW8bit if recipe.optimizer == "adamw_8bit" else bnb.optim.PagedAdamW8bit
    optimizer: torch.optim.Optimizer = make(trainable, **settings)
    return optimizer
