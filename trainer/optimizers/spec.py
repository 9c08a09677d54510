"""What an optimizer is: the record that each file of kinds fills in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSpec:
    """One optimizer.

    build: (parameters, lr, weight_decay, foreach) -> it; foreach: all parameters at once, None leaves it to PyTorch.
    state_bits: of a number in its state: 32 (the dtype of the weight), 8, or 0 where it keeps no number a weight.
    state_bytes: bytes of state a trained weight, given the bytes of the weight.
    label: what a plan's one-line description says of it, nothing for the usual ones.
    lighter: the name of one with less state on the card, to try where a step misses by little.
    paged: whether its state moves to the host when the card is full.
    elsewhere: its name in other trainers, where that is another than ours.
    source: where it is described.
    """

    name: str
    build: Callable[..., torch.optim.Optimizer]
    state_bits: int
    state_bytes: Callable[[int], float]
    source: str
    label: str = ""
    lighter: str | None = None
    paged: bool = False
    elsewhere: dict[str, str] = field(default_factory=dict)


# What every AdamW here is built with
MOMENTS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}
