"""LoRA: a product of two small matrices beside each weight (arXiv:2106.09685); rsLoRA, LoRA-FA and DoRA with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.trainer.adapters.initial import (
    FROM_WEIGHTS,
    INITIAL,
    TITLES,
    begin_with_weights,
    save_as_lora,
    saved_recipe,
)
from autoft.trainer.adapters.kind import AdapterKind, save_as_trained

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe


PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the base stays as it is


PEFT_INITS = {"orthogonal": "orthogonal"}  # the others begin as PEFT's default does


def config(
    recipe: Recipe, layers: list[str], *, trained_tokens: dict[str, list[int]] | None = None, **common: Any
) -> Any:
    """trained_tokens: ids by the embedding's name, and the head's where it has rows of its own."""
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
        init_lora_weights=PEFT_INITS.get(recipe.init, True),
        trainable_token_indices=trained_tokens,
        target_modules=layers,
        **common,
    )


def trains(weight: str, recipe: Recipe) -> bool:
    return f".{INITIAL}." not in weight and not (recipe.freeze_a and ".lora_A." in weight)


def give_bias(model: Any) -> None:
    """Give a head whose rows are trained the bias None that it had: PEFT 0.21 hands on its weight alone.

    TRL's fused head reads both (trainer/utils.py, add_fused_lm_head).
    """
    from peft.utils.other import TrainableTokensWrapper

    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper) and getattr(module.original_module, "bias", None) is None:
            module.bias = None


def begin(model: Any, recipe: Recipe) -> None:
    if recipe.init in FROM_WEIGHTS:
        begin_with_weights(model, recipe)


def save(model: Any, recipe: Recipe, folder: Path) -> None:
    if recipe.init in FROM_WEIGHTS:
        save_as_lora(model, recipe, folder)
    else:
        save_as_trained(model, recipe, folder)


def unlike(saved: Mapping[str, Any]) -> str | None:
    """First weights such as PiSSA's move a part of the base into the adapter, which then belongs to another base."""
    beginning = saved.get("init_lora_weights")
    return None if beginning in PLAIN_BEGINNINGS else f"init_lora_weights is {beginning}"


def title(recipe: Recipe) -> str:
    """LoRA, rsLoRA, LoRA-FA, LoRA+, LoRA with DoRA, LoRA with PiSSA init."""
    plain = ("rsLoRA" if recipe.use_rslora else "LoRA") + ("-FA" if recipe.freeze_a else "")
    plain += "+" if recipe.lora_plus_ratio > 1 else ""
    begun = f" with {TITLES.get(recipe.init, recipe.init)} init" if recipe.init != "default" else ""
    return plain + (" with DoRA" if recipe.use_dora else "") + begun


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
    unsaved=frozenset({"freeze_a", "init", "lora_plus_ratio", "new_tokens", "first_new_id"}),
    unlike=unlike,
    trains=trains,
    mend=give_bias,
    begin=begin,
    saved=saved_recipe,
    save=save,
    title=title,
    size=size,
    learning_rate=2e-4,
    rate_source="the QLoRA paper's for models of 7B and 13B (arXiv:2305.14314, table 9)",
    source="LoRA, arXiv:2106.09685",
)
