"""What an objective is: the record that each file of objectives fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Batch = dict[str, Any]  # tensors by name
Loss = Callable[..., Any]  # (model, batch, recipe, num_trained_tokens) -> a scalar, as loss.py has it


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What a step minimises, and the batches that it takes: training, rehearsal, gates and evaluation have no others.

    row: (the examples that share it, recipe, pad_id, width) -> one row of a dataset. width: of a packed row, where it
        is not recipe.seq_len.
    collate: (rows, recipe, pad_id) -> a micro-batch.
    dummy_batch: (recipe, ids, plain) -> a full micro-batch of those tokens; without any, on the meta device.
    loss: what is minimised. losses: values of recipe.loss by which it can be computed, the plainest last.
    metrics: what is reported of held-out rows and held against the base's own loss, by name; the same for objectives
        that are to be compared.
    label: what a plan's one-line description says of it, nothing for the usual one.
    elsewhere: what other trainers are told in their own keys, by trainer.
    source: where it is described.
    """

    name: str
    row: Callable[..., dict[str, Any]]
    collate: Callable[..., Batch]
    dummy_batch: Callable[..., Batch]
    loss: Loss
    losses: tuple[str, ...]
    metrics: Mapping[str, Loss]
    source: str
    label: str = ""
    elsewhere: dict[str, dict[str, Any]] = field(default_factory=dict)
