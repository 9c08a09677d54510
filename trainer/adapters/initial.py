"""How LoRA's matrices begin: at random, or with a part of the base's own weights (PiSSA, OLoRA).

PEFT takes that part out of the base, s * B0 @ A0, and trains B @ A over what is left. Here the base stays as it is: the
part is an adapter of its own, INITIAL, that is subtracted and never trained. What is computed is the same,
W x + s B A x - s B0 A0 x; without adapters the model is the true base; what is saved is plain LoRA of twice the rank.
Matrices are out x in, A rank x in, B out x rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from autoft.trainer.recipe import Recipe

DEFAULT = "default"  # PEFT's name for the first adapter of a model
INITIAL = "initial"
FROM_WEIGHTS = frozenset({"pissa", "pissa_niter_4", "pissa_niter_16", "olora"})
TITLES = {"pissa": "PiSSA", "pissa_niter_4": "PiSSA", "pissa_niter_16": "PiSSA", "olora": "OLoRA"}
SEED = 0  # of the randomized decomposition, so that a run that is resumed elsewhere draws the same


def begin_with_weights(model: PeftModel, recipe: Recipe) -> None:
    """Give the adapter the part of each weight that `recipe.init` says, and the model the adapter that subtracts it.

    Decompositions run on the CPU, a layer at a time, and take no memory of a GPU.
    Raises: ModelError where a layer has no weight matrix, or one smaller than the rank.
    """
    layers = dict(_layers(model, recipe))
    model.add_adapter(INITIAL, copy.deepcopy(model.peft_config[DEFAULT]))
    model.base_model.set_adapter([DEFAULT, INITIAL])
    for layer in layers.values():
        layer.set_scale(INITIAL, -1)
        if not layer.get_base_layer().weight.is_meta:
            _fill(layer, recipe)


def _layers(model: PeftModel, recipe: Recipe) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import Linear

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        where = name.removeprefix("base_model.model.")
        if not isinstance(layer, Linear):
            raise ModelError(
                f"init {recipe.init} decomposes the weights of linear layers, and {where} is none",
                fix="--set target_modules=all-linear, or leave init out",
            )
        smaller = min(layer.get_base_layer().weight.shape)
        if smaller < recipe.rank:
            raise ModelError(
                f"init {recipe.init}: rank {recipe.rank} is more than {where} has, {smaller}",
                fix=f"--set rank={smaller}",
            )
        yield name, layer


def _fill(layer: Any, recipe: Recipe) -> None:
    import torch

    weight = layer.get_base_layer().weight.detach().cpu().float()  # in one step it would be widened on the GPU
    a, b = part_of(weight.T if layer.fan_in_fan_out else weight, recipe, layer.scaling[DEFAULT])
    with torch.no_grad():
        for name in (DEFAULT, INITIAL):
            layer.lora_A[name].weight.copy_(a)
            layer.lora_B[name].weight.copy_(b)


def part_of(weight: torch.Tensor, recipe: Recipe, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B that begin with a part of `weight`, a float32 matrix on the CPU, as PEFT 0.21's pissa_init, olora_init.

    scaling: of the product. PiSSA (arXiv:2404.02948): the largest singular values, exactly or by a randomized method.
    OLoRA (arXiv:2406.01775): the first columns of Q and rows of R; other columns of Q change nothing.
    """
    import torch

    rank = recipe.rank
    if recipe.init == "olora":
        b = torch.linalg.qr(weight[:, :rank]).Q
        return b.T @ weight, b
    if recipe.init == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        right = right.T
    else:
        rounds = int(recipe.init.rsplit("_", 1)[-1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            left, values, right = torch.svd_lowrank(weight, rank, niter=rounds)
    root = (values[:rank] / scaling).sqrt()
    return (right[:, :rank] * root).T, left[:, :rank] * root


def decomposed(recipe: Recipe, shape: tuple[int, ...]) -> list[int]:
    """Elements of what `part_of` holds at once beside a weight of `shape`, in float32.

    A full decomposition copies the weight and makes both sides; others keep a few matrices of the rank.
    """
    height, width = shape
    rank, smaller = recipe.rank, min(shape)
    if recipe.init == "pissa":
        return [height * width, height * smaller, smaller, smaller * width]
    return [2 * rank * height, 2 * rank * width]


def saved_size(init: str, rank: int) -> int:
    """The rank that an adapter of `rank` is saved with."""
    return 2 * rank if init in FROM_WEIGHTS else rank


def saved_recipe(recipe: Recipe) -> Recipe:
    """The recipe of what is saved: B A - B0 A0 is one product of twice the rank, scaled by as much as each."""
    if recipe.init not in FROM_WEIGHTS:
        return recipe
    more = 2**0.5 if recipe.use_rslora else 2
    return replace(recipe, init="default", rank=saved_size(recipe.init, recipe.rank), alpha=more * recipe.alpha)


def save_as_lora(model: PeftModel, recipe: Recipe, folder: Path) -> None:
    """Write the adapter to `folder` as plain LoRA for the unchanged base. Raises: OSError."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, adapter_name=DEFAULT, save_embedding_layers=False)
    joined = model.base_model.subtract_mutated_init(state, INITIAL, {})
    whole = {name: weight.detach().cpu().contiguous() for name, weight in joined.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    saved, config = saved_recipe(recipe), copy.deepcopy(model.peft_config[DEFAULT])
    config.r, config.lora_alpha, config.inference_mode = saved.rank, saved.alpha, True
    config.save_pretrained(folder)
