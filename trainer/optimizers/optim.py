"""The optimizer of one Recipe."""

from __future__ import annotations

from collections.abc import Collection
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
    faster: Collection[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `parameters`.

    foreach: adamw_torch takes all parameters at once, as PyTorch does by itself on a GPU; None leaves it to PyTorch.
    faster: those of the parameters that learn at lora_plus_ratio times the rate, from `faster_weights`.
    """
    build = spec_of(recipe.optimizer).build
    groups: list[Any] = parameters
    if faster:
        chosen = set(faster)
        rest = [parameter for parameter in parameters if parameter not in chosen]
        raised = [parameter for parameter in parameters if parameter in chosen]
        groups = [{"params": rest}, {"params": raised, "lr": recipe.lora_plus_ratio * learning_rate}]
    return build(groups, lr=learning_rate, weight_decay=weight_decay, foreach=foreach)


def is_faster(name: str, num_dims: int, recipe: Recipe) -> bool:
    """Whether a trained weight learns at the larger rate of LoRA+ (arXiv:2402.12354): B, and DoRA's lengths of rows.

    As PEFT's create_loraplus_optimizer has it (optimizers/loraplus.py).
    """
    return recipe.lora_plus_ratio > 1 and (".lora_B." in name or num_dims == 1)


def faster_weights(model: Any, recipe: Recipe) -> list[torch.nn.Parameter]:
    """The trained weights of `model` for which `is_faster` holds."""
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    return [weight for name, weight in trained if is_faster(name, weight.dim(), recipe)]


def forget_steps(optimizer: Any) -> None:
    """Have `optimizer` be as before its first step."""
    optimizer.zero_grad()
    if hasattr(optimizer, "forget"):
        optimizer.forget()
    else:
        optimizer.state.clear()
