"""Which optimizers are there, what does each keep of a trained weight, and how is it built?

In: the name in a Recipe, trained parameters, learning rate. Out: a torch.optim.Optimizer, and what the planner and the
exports must know of it. A file here is a kind; its OPTIMIZERS are found by name.
"""

from __future__ import annotations

from autoft.trainer.optimizers import adafactor, adamw, adamw_8bit
from autoft.trainer.optimizers.spec import OptimizerSpec

_SPECS = (*adamw.OPTIMIZERS, *adamw_8bit.OPTIMIZERS, *adafactor.OPTIMIZERS)
OPTIMIZERS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}


def spec_of(name: str) -> OptimizerSpec:
    """Raises: KeyError for a name that is none."""
    return OPTIMIZERS[name]
