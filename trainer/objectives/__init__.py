"""Which objectives are there: what does a step minimise, on which batches?

In: the name in a Recipe. Out: rows, micro-batches and the loss of training, of its rehearsal and its checks, and what
is reported of held-out rows. A file here is an objective; its OBJECTIVE is found by name. How the loss is computed is
recipe.loss (loss.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.trainer.objectives import dft, sft
from autoft.trainer.objectives.objective import Objective

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe

OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in (sft.OBJECTIVE, dft.OBJECTIVE)}


def objective_of(recipe: Recipe) -> Objective:
    """Of the recipe."""
    return OBJECTIVES[recipe.objective]
