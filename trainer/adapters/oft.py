"""OFT: a layer's inputs are rotated in blocks before its weight multiplies them (arXiv:2306.07280, 2506.19847)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError
from autoft.trainer.adapters.kind import AdapterKind

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe


def config(recipe: Recipe, layers: list[str], **common: Any) -> Any:
    from peft import OFTConfig

    return OFTConfig(oft_block_size=recipe.oft_block_size, target_modules=layers, **common)


def begin(model: Any, recipe: Recipe) -> None:
    """Refuse blocks that PEFT has made of another size, which it only warns of. Raises: ModelError."""
    from peft.tuners.oft import OFTLayer

    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, OFTLayer))
    for name, layer in layers:
        size = layer.oft_block_size["default"]
        if size != recipe.oft_block_size:
            where = name.removeprefix("base_model.model.")
            raise ModelError(
                f"oft_block_size {recipe.oft_block_size} does not divide the {layer.in_features} inputs of {where}",
                fix=f"--set oft_block_size={size}",
            )


def unlike(saved: Mapping[str, Any]) -> str | None:
    """Rotations are computed by a sum of powers here, not by a solver."""
    return None if saved.get("use_cayley_neumann", True) else "use_cayley_neumann is false"


def trains(_weight: str, _: Recipe) -> bool:
    return True


def title(_: Recipe) -> str:
    return "OFT"


def size(recipe: Recipe) -> str:
    return f"blocks of {recipe.oft_block_size}"


ADAPTER = AdapterKind(
    name="oft",
    config=config,
    prefix="oft_",
    once=".oft_R.",
    keys={"oft_block_size": "oft_block_size"},
    unlike=unlike,
    trains=trains,
    begin=begin,
    title=title,
    size=size,
    learning_rate=1e-4,
    rate_source="that of PEFT's MetaMathQA comparison",
    source="Controlling Text-to-Image Diffusion by Orthogonal Finetuning, arXiv:2306.07280; PEFT's form of it: "
    "Orthogonal Finetuning Made Scalable, arXiv:2506.19847",
)
