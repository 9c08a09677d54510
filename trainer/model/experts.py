"""The experts of a mixture-of-experts model, held in 4 bits.

transformers 5 holds the experts of a layer in 3-D parameters, gate_up_proj [E, 2I, H] and down_proj [E, H, I] in most
families (E experts, H hidden size, I intermediate size). bitsandbytes' layers replace nn.Linear alone, so a QLoRA
leaves such experts in 16 bits, and they are most of the model. Here they are packed in blocks of 64 weights as
Linear4bit packs its weight (arXiv:2305.14314), and unpacked to base_dtype while a layer computes with them.

Memory of a layer beside its packed weights: all its experts in base_dtype during its forward; during its backward one
tensor at a time, or with gradient checkpointing again all of them, since the recomputed forward keeps them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from autoft.errors import ModelError
from autoft.trainer.recipe import Recipe

BLOCK = 64  # weights that share a scale, bitsandbytes' default
SCALES_BLOCK = 256  # scales that share a scale when they are quantized too, as bitsandbytes has it
MOST_WEIGHTS = 2**31 - 1  # bitsandbytes 0.50 counts the weights of one tensor in an int32 and does not check


def quantize_experts(base: PreTrainedModel, recipe: Recipe) -> None:
    """Hold the expert weights of `base` in 4 bits, one tensor after the other, each on the device where it is.

    Weights on the meta device get packed tensors and scales of the true shapes there. Weights that were packed while
    they were loaded (quantizer.py) stay as they are.
    Raises: ModelError when there are no experts, or a tensor of them is too large for bitsandbytes.
    """
    demand_experts(base)
    for module, name in expert_weights(base):
        weight: Any = module.get_parameter(name)
        if not _is_packed(weight):
            weight = pack(weight, str(recipe.quant_type), recipe.double_quant)
            setattr(module, name, weight)
        parametrize.register_parametrization(module, name, _Unpack(weight.quant_state), unsafe=True)
    for module in base.modules():
        if holds_experts(module) and parametrize.is_parametrized(module):
            _unpack_once_a_forward(module, for_backward=not recipe.gradient_checkpointing)


def expert_weights(model: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Module and name of every expert weight that is not parametrized yet."""
    return [
        (module, name)
        for module in model.modules()
        if holds_experts(module)
        for name, weight in module.named_parameters(recurse=False)
        if is_expert_weight(weight)
    ]


def demand_experts(model: torch.nn.Module) -> None:
    """Raises: ModelError when `model` has no expert weights, or one that bitsandbytes cannot count."""
    weights = [(name, module.get_parameter(name)) for module, name in expert_weights(model)]
    if not weights:
        raise ModelError(f"{type(model).__name__} has no experts to hold in 4 bits", fix="leave experts_4bit out")
    name, largest = max(weights, key=lambda pair: pair[1].numel())
    if largest.numel() > MOST_WEIGHTS:
        raise ModelError(
            f"{name} of {type(model).__name__} has {largest.numel():,} weights, and bitsandbytes packs at most "
            f"{MOST_WEIGHTS:,} at once",
            fix="leave experts_4bit out",
        )


def holds_experts(module: torch.nn.Module) -> bool:
    """Every class of transformers 5.23 with experts in 3-D parameters is called ...Experts; nothing else of it is.

    Its mark for experts, @use_experts_implementation, is missing on Llama 4, JetMoE and LongCat.
    """
    return parametrize.type_before_parametrizations(module).__name__.endswith("Experts")


def is_expert_weight(weight: torch.Tensor) -> bool:
    return _is_packed(weight) or (weight.ndim == 3 and weight.is_floating_point())


def _is_packed(weight: torch.Tensor) -> bool:
    return hasattr(weight, "quant_state")


class _Unpack(Bnb4bitParametrization):  # type: ignore[misc]
    """Packed bytes to the weight, in rows of one block.

    On a CPU bitsandbytes 0.50 takes the scales of other blocks when a row is no multiple of 64 weights (measured: 28 %
    off for rows of 96, where NF4 is 9 % off).
    """

    @torch.no_grad()
    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        shape = self.quant_state.shape
        rows = copy.copy(self.quant_state)
        count = shape.numel()
        rows.shape = torch.Size((count // BLOCK, BLOCK) if count % BLOCK == 0 else (count,))
        weight: torch.Tensor = dequantize_4bit(packed, rows)
        return weight.view(shape)


def pack(weight: torch.Tensor, quant_type: str, double_quant: bool) -> torch.nn.Parameter:
    """[n/2, 1] bytes, two weights in each, with its QuantState as attribute `quant_state`, as Params4bit has it."""
    if weight.device.type == "meta":
        packed, state = pack_on_meta(weight, quant_type, double_quant)
    else:
        packed, state = quantize_4bit(
            weight.detach(), blocksize=BLOCK, compress_statistics=double_quant, quant_type=quant_type
        )
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = state  # type: ignore[attr-defined]
    return parameter


def pack_on_meta(weight: torch.Tensor, quant_type: str, double_quant: bool) -> tuple[torch.Tensor, Any]:
    """What quantize_4bit returns, without storage. bitsandbytes' own would leave its code table on meta for good."""
    blocks = -(-weight.numel() // BLOCK)
    scales: dict[str, Any] = {"absmax": torch.empty(blocks, device="meta")}
    if double_quant:
        scales["absmax"] = torch.empty(blocks, dtype=torch.uint8, device="meta")
        scales["offset"] = torch.empty((), device="meta")
        scales["state2"] = QuantState(
            absmax=torch.empty(-(-blocks // SCALES_BLOCK), device="meta"),
            code=torch.empty(256, device="meta"),
            blocksize=SCALES_BLOCK,
            dtype=torch.float32,
        )
    code = torch.empty(16, device="meta")
    state = QuantState(
        shape=weight.shape, dtype=weight.dtype, blocksize=BLOCK, quant_type=quant_type, code=code, **scales
    )
    return torch.empty(((weight.numel() + 1) // 2, 1), dtype=torch.uint8, device="meta"), state


def _unpack_once_a_forward(module: torch.nn.Module, *, for_backward: bool) -> None:
    """Make `module` unpack each weight once a forward, however often it reads it (a loop over E experts reads E times).

    for_backward: unpack again in the backward, so that no unpacked weight lives from one to the other. Not with
    gradient checkpointing, which does the same for whole layers and whose hooks ours would displace.
    """
    forward = module.forward

    def forward_with_unpacked(*args: Any, **kwargs: Any) -> Any:
        with parametrize.cached(), _packed_for_backward(module) if for_backward else contextlib.nullcontext():
            return forward(*args, **kwargs)

    module.forward = forward_with_unpacked


@contextlib.contextmanager
def _packed_for_backward(module: torch.nn.Module) -> Iterator[None]:
    """Where autograd would save an unpacked weight of `module`, or a view of one, save what finds it again.

    The backward then unpacks the whole tensor each time: once where all experts are multiplied at once (the default),
    once an expert where `module` loops over them.
    """
    unpacked = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]

    def pack(saved: torch.Tensor) -> Any:
        for name, weight in unpacked.items():
            if saved.untyped_storage() is weight.untyped_storage():
                return name, saved.size(), saved.stride(), saved.storage_offset()
        return saved

    def unpack(saved: Any) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        name, size, stride, offset = saved
        weight: torch.Tensor = getattr(module, name)
        return weight.as_strided(size, stride, offset)

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        unpacked.clear()  # autograd keeps `pack`
