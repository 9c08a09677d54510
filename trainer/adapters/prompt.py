"""Prompt tuning: vectors that stand before every row, and are all that is trained (arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe


def config(recipe: Recipe, _layers: list[str], *, task_type: str, **_common: Any) -> Any:
    """The vectors begin as the embeddings of tokens drawn at random."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(
        num_virtual_tokens=recipe.virtual_tokens, prompt_tuning_init="SAMPLE_VOCAB", task_type=task_type
    )


def unlike(saved: Mapping[str, Any]) -> str | None:
    modules = saved.get("num_transformer_submodules")
    return None if modules in (None, 1) else f"num_transformer_submodules is {modules}"


def trains(_weight: str, _: Recipe) -> bool:
    return True


def title(_: Recipe) -> str:
    return "prompt tuning"


def size(recipe: Recipe) -> str:
    return f"{recipe.virtual_tokens} virtual tokens"


def mend(model: Any) -> None:
    """Have PEFT leave out position ids, as it says in a warning for each answer.

    They count from the first vector on without them, which is right where no padding stands between.
    """
    adjust = model._adjust_prompt_learning_kwargs

    def without_positions(config: Any, *, kwargs: dict[str, Any], **how: Any) -> None:
        kwargs.pop("position_ids", None)
        adjust(config, kwargs=kwargs, **how)

    model._adjust_prompt_learning_kwargs = without_positions


def tokens_before(model: Any) -> int:
    """How many vectors stand before each row of a model's answer; 0 without such an adapter, or while it is off."""
    active = getattr(model, "active_peft_config", None) if hasattr(model, "prompt_encoder") else None
    return 0 if active is None or model._adapters_disabled else int(active.num_virtual_tokens)


ADAPTER = AdapterKind(
    name="prompt",
    peft_type="PROMPT_TUNING",
    config=config,
    prefix="prompt_encoder.",
    once="prompt_encoder.",
    keys={"virtual_tokens": "num_virtual_tokens"},
    on_layers=False,
    unlike=unlike,
    trains=trains,
    mend=mend,
    title=title,
    size=size,
    learning_rate=1e-3,
    rate_source="that of PEFT's MetaMathQA comparison",
    source="The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691",
)
