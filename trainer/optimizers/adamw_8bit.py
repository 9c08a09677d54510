"""AdamW of bitsandbytes, whose two moments are quantized to 8 bits in blocks (arXiv:2110.02861)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.trainer.optimizers.spec import MOMENTS, OptimizerSpec

if TYPE_CHECKING:
    import torch

BLOCK = 256  # weights that share a scale of 32 bits: bitsandbytes' optimizers


def adamw_8bit(
    parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float, **_: object
) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, lr=lr, weight_decay=weight_decay, **MOMENTS)
    return optimizer


def paged_adamw_8bit(
    parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float, **_: object
) -> torch.optim.Optimizer:
    from autoft.trainer.optimizers.paged import PagedAdamW

    return PagedAdamW(parameters, lr=lr, weight_decay=weight_decay, **MOMENTS)


def two_moments_in_blocks(_: int) -> float:
    return 2 * (1 + 4 / BLOCK)


SOURCE = "8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861"
OPTIMIZERS = (
    OptimizerSpec(
        name="adamw_8bit",
        build=adamw_8bit,
        state_bits=8,
        state_bytes=two_moments_in_blocks,
        label="8-bit optimizer",
        lighter="paged_adamw_8bit",
        elsewhere={"axolotl": "adamw_bnb_8bit"},
        source=SOURCE,
    ),
    OptimizerSpec(
        name="paged_adamw_8bit",
        build=paged_adamw_8bit,
        state_bits=8,
        state_bytes=two_moments_in_blocks,
        label="paged 8-bit optimizer",
        paged=True,
        source=f"{SOURCE}; paged: QLoRA, arXiv:2305.14314, section 3",
    ),
)
