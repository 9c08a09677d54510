"""Dynamic Fine-Tuning: the loss of a token counts as much as the model already expects the token (arXiv:2508.05629)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from autoft.trainer.objectives import batch
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.objectives.objective import Objective

if TYPE_CHECKING:
    import torch


def weighted(losses: torch.Tensor) -> torch.Tensor:
    """-p * log(p) of each token, where p, its probability, is a constant to the gradient."""
    return losses * (-losses.detach()).exp()


OBJECTIVE = Objective(
    name="dft",
    row=batch.row,
    collate=batch.collate,
    dummy_batch=batch.dummy_batch,
    loss=partial(compute_loss, weigh=weighted),
    losses=("fused", "selected"),  # Hugging Face's loss on all logits is a sum already
    metrics={"loss": compute_loss},  # that of sft, so that runs compare
    label="DFT loss",
    elsewhere={"trl": {"loss_type": "dft"}, "llamafactory": {"use_dft_loss": True}},
    source="On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification, "
    "arXiv:2508.05629",
)
