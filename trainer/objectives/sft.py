"""Supervised fine-tuning: the negative log likelihood of the trained tokens, each counting the same."""

from __future__ import annotations

from autoft.trainer.objectives import batch
from autoft.trainer.objectives.loss import compute_loss
from autoft.trainer.objectives.objective import Objective

OBJECTIVE = Objective(
    name="sft",
    row=batch.row,
    collate=batch.collate,
    dummy_batch=batch.dummy_batch,
    loss=compute_loss,
    losses=("fused", "selected", "logits"),
    metrics={"loss": compute_loss},
    source="Finetuned Language Models Are Zero-Shot Learners, arXiv:2109.01652",
)
