"""AdamW of PyTorch, whose two moments have the dtype of the weights (arXiv:1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.trainer.optimizers.spec import MOMENTS, OptimizerSpec

if TYPE_CHECKING:
    import torch


def adamw(
    parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float, foreach: bool | None
) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, foreach=foreach, **MOMENTS)


def adamw_fused(
    parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float, **_: object
) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True, **MOMENTS)


def two_moments(weight_bytes: int) -> float:
    return 2 * weight_bytes


SOURCE = "Decoupled Weight Decay Regularization, arXiv:1711.05101"
OPTIMIZERS = (
    OptimizerSpec(
        name="adamw_torch",
        build=adamw,
        state_bits=32,
        state_bytes=two_moments,
        lighter="adamw_8bit",
        source=SOURCE,
    ),
    OptimizerSpec(
        name="adamw_torch_fused",
        build=adamw_fused,
        state_bits=32,
        state_bytes=two_moments,
        lighter="adamw_8bit",
        source=SOURCE,
    ),
)
