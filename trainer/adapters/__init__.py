"""Which kinds of adapter are there, and how is each configured, told apart and described?

In: a Recipe and the names of the layers that get an adapter. Out: PEFT's configuration, and what planner, trainer and
texts must know of the kind. A file here is a kind; its ADAPTER is found by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError
from autoft.trainer.adapters import ia3, lora, oft, prompt
from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe

ADAPTERS: dict[str, AdapterKind] = {
    kind.name: kind for kind in (lora.ADAPTER, ia3.ADAPTER, oft.ADAPTER, prompt.ADAPTER)
}
BY_TYPE: dict[str, AdapterKind] = {kind.type: kind for kind in ADAPTERS.values()}  # as adapter_config.json has it

# PEFT's other kinds, and values of init, with why they are not here
_PREFIX = "it was far worse than LoRA in PEFT's comparison (.147 beside .482), and takes no gradient checkpointing"
NOT_HERE = {
    "vera": "it was worse than LoRA in PEFT's comparison (.368 beside .482), at hardly less memory",
    "boft": "it was worse than LoRA in PEFT's comparison (.365 beside .482), and 4.6x slower",
    "prompt_tuning": "it is called prompt here",
    "prefix": _PREFIX,
    "prefix_tuning": _PREFIX,
    "p_tuning": "prompt tuning with an encoder before it; the encoder is not supported",
    "loftq": "it corrects a 4-bit base; merges and exports go onto the 16-bit one, where that is an error",
    "eva": "it is not supported yet",
}


def kind_of(recipe: Recipe) -> AdapterKind:
    """Of the recipe's adapter; in full fine-tuning, which has none, the one that owns nothing there."""
    return ADAPTERS[recipe.adapter]


def kind_of_config(config: Mapping[str, Any], where: Path | str) -> AdapterKind:
    """Of a parsed adapter_config.json. where: named in the error. Raises: ModelError for a kind that is not here."""
    kind = BY_TYPE.get(str(config.get("peft_type")))
    if kind is None:
        raise ModelError(
            f"{where}: peft_type is {config.get('peft_type')!r}, and autoft opens {', '.join(BY_TYPE)}",
            fix="give an adapter of these",
        )
    return kind


def is_adapter(weight: str) -> bool:
    """Whether a weight of this name is an adapter's own, of whatever kind."""
    return any(kind.owns(weight) for kind in ADAPTERS.values())
