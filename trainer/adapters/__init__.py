"""Which kinds of adapter are there, and how is each configured, told apart and described?

In: a Recipe and the names of the layers that get an adapter. Out: PEFT's configuration, and what planner, trainer and
texts must know of the kind. A file here is a kind; its ADAPTER is found by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.trainer.adapters import ia3, lora, oft
from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe

ADAPTERS: dict[str, AdapterKind] = {kind.name: kind for kind in (lora.ADAPTER, ia3.ADAPTER, oft.ADAPTER)}


def kind_of(recipe: Recipe) -> AdapterKind:
    """Of the recipe's adapter; in full fine-tuning, which has none, the one that owns nothing there."""
    return ADAPTERS[recipe.adapter]


def is_adapter(weight: str) -> bool:
    """Whether a weight of this name is an adapter's own, of whatever kind."""
    return any(kind.owns(weight) for kind in ADAPTERS.values())
