"""IA3: a factor for each output of a layer, or each input of the last layer of an MLP (arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    import torch

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


def mend(model: Any) -> None:
    """Have quantized layers give what they take outside autocast too, as generation runs.

    PEFT 0.21 computes there in float32 and means to go back to the input's dtype, but asks the result for it
    (tuners/ia3/bnb.py, expected_dtype): the head, in 16 bits, then refuses float32.
    """
    from peft.tuners.ia3 import IA3Layer

    for module in model.modules():
        quantized = isinstance(module, IA3Layer) and type(module).__name__ in ("Linear4bit", "Linear8bitLt")
        if quantized and not hasattr(module, "gives_dtype_of_input"):
            module.gives_dtype_of_input = module.register_forward_hook(_in_dtype_of_input)


def _in_dtype_of_input(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    import torch

    device = "cpu" if output.is_meta else output.device.type
    return output if torch.is_autocast_enabled(device) else output.to(inputs[0].dtype)


def trains(_weight: str, _: Recipe) -> bool:
    return True


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
    trains=trains,
    mend=mend,
    title=title,
    size=size,
    learning_rate=3e-3,
    rate_source="the IA3 paper's (arXiv:2205.05638)",
    source="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, arXiv:2205.05638",
)
