"""Adafactor, which keeps of a matrix the means of its squared gradients by row and by column (arXiv:1804.04235)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.trainer.optimizers.spec import OptimizerSpec

if TYPE_CHECKING:
    import torch


def adafactor(
    parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float, **_: object
) -> torch.optim.Optimizer:
    """Without its own schedule: the learning rate is the run's, and no update is larger, by its root mean square."""
    from autoft.trainer.optimizers.factored import Adafactor

    return Adafactor(parameters, lr=lr, weight_decay=weight_decay, scale_parameter=False, relative_step=False)


def rows_and_columns(_: int) -> float:
    """At most: of an adapter of rank 4, a float32 a row and a column; of a whole matrix next to nothing."""
    return 1.0


OPTIMIZERS = (
    OptimizerSpec(
        name="adafactor",
        build=adafactor,
        state_bits=0,
        state_bytes=rows_and_columns,
        label="Adafactor",
        source="Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235",
    ),
)
