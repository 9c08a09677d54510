"""IA3: a factor for each output of a layer, or each input of the last layer of an MLP (arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe

# The last layers of MLPs, by their last names: PEFT's own list of feedforward modules, peft/utils/constants.py
FEEDFORWARD = frozenset({"down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo"})


def config(_: Recipe, layers: list[str], **common: Any) -> Any:
    from peft import IA3Config

    last = [name for name in layers if name.rsplit(".", 1)[-1] in FEEDFORWARD]
    return IA3Config(target_modules=layers, feedforward_modules=last, **common)


def unlike(saved: Mapping[str, Any]) -> str | None:
    """Inputs are scaled, not outputs, in the layers that `config` names, and no others."""
    last = {name for name in saved.get("target_modules") or () if name.rsplit(".", 1)[-1] in FEEDFORWARD}
    named = saved.get("feedforward_modules") or ()
    return None if set(named) == last else f"feedforward_modules is {', '.join(map(str, named)) or 'empty'}"


def title(_: Recipe) -> str:
    return "IA3"


def size(_: Recipe) -> str:
    return ""


ADAPTER = AdapterKind(
    name="ia3",
    config=config,
    prefix="ia3_",
    once=".ia3_l.",
    keys={},
    unlike=unlike,
    title=title,
    size=size,
    learning_rate=3e-3,
    rate_source="the IA3 paper's (arXiv:2205.05638)",
    source="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, arXiv:2205.05638",
)
