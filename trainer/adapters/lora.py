"""LoRA: a product of two small matrices beside each weight (arXiv:2106.09685); rsLoRA, LoRA-FA and DoRA with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe


PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the base stays as it is


def config(recipe: Recipe, layers: list[str], **common: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
        target_modules=layers,
        **common,
    )


def trains(weight: str, recipe: Recipe) -> bool:
    return not (recipe.freeze_a and ".lora_A." in weight)


def unlike(saved: Mapping[str, Any]) -> str | None:
    """First weights such as PiSSA's move a part of the base into the adapter, which then belongs to another base."""
    beginning = saved.get("init_lora_weights")
    return None if beginning in PLAIN_BEGINNINGS else f"init_lora_weights is {beginning}"


def title(recipe: Recipe) -> str:
    """LoRA, rsLoRA, LoRA-FA, LoRA with DoRA."""
    plain = ("rsLoRA" if recipe.use_rslora else "LoRA") + ("-FA" if recipe.freeze_a else "")
    return plain + (" with DoRA" if recipe.use_dora else "")


def size(recipe: Recipe) -> str:
    return f"rank {recipe.rank}"


ADAPTER = AdapterKind(
    name="lora",
    config=config,
    prefix="lora_",
    once=".lora_A.",
    keys={
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
    },
    unsaved=frozenset({"freeze_a"}),
    unlike=unlike,
    trains=trains,
    title=title,
    size=size,
    learning_rate=2e-4,
    rate_source="the QLoRA paper's for models of 7B and 13B (arXiv:2305.14314, table 9)",
    source="LoRA, arXiv:2106.09685",
)
