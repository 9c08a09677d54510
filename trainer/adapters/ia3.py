"""IA3: a factor for each output of a layer, or each input of the last layer of an MLP (arXiv:2205.05638)."""

from __future__ import annotations

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


def title(_: Recipe) -> str:
    return "IA3"


def size(_: Recipe) -> str:
    return ""


ADAPTER = AdapterKind(
    name="ia3",
    config=config,
    prefix="ia3_",
    once=".ia3_l.",
    settings=frozenset(),
    title=title,
    size=size,
    learning_rate=3e-3,
    rate_source="the IA3 paper's (arXiv:2205.05638)",
    source="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, arXiv:2205.05638",
)
