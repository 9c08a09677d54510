"""The loss of the base alone, computed the plainest way there is: what a training path must agree with.

No adapter, no padding, no packing, no fused head, no autocast, no FlashAttention and no quantized kernel: weights in 4
or 8 bits are unpacked by their format's own rule. B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from autoft.trainer.data.tokens import Example
from autoft.trainer.model.build import without_adapter
from autoft.trainer.objectives.loss import IGNORED

if TYPE_CHECKING:
    import torch

UNPACKED_AT_ONCE = 2**24  # weights, 64 MiB of them in float32


@dataclass(frozen=True, slots=True)
class Reference:
    """loss: nats a trained token. spread: standard deviation of the loss over all tokens, those of prompts too."""

    loss: float
    spread: float


def base_loss(model: Any, examples: Sequence[Example]) -> Reference:
    """Of the base alone on `examples`, one forward each. model: as `build_model` built it; it stays as it is."""
    import torch

    base = without_adapter(model)
    alone = _adapter_aside(model) if hasattr(model, "disable_adapter") else nullcontext()
    training = model.training
    row_losses, trained = [], []
    model.eval()
    try:
        with torch.no_grad(), alone, _plain_attention(base), _unpacked_layers(base):
            for example in examples:
                ids_BS = torch.tensor([list(example.input_ids)], device=base.device)
                # of the class: the instance's own may have a fused head over it
                logits_BSV = type(base).forward(base, input_ids=ids_BS, use_cache=False).logits
                row_losses.append(
                    torch.nn.functional.cross_entropy(logits_BSV[0, :-1].float(), ids_BS[0, 1:], reduction="none")
                )
                trained.append(torch.tensor(list(example.labels)[1:], device=base.device) != IGNORED)
    finally:
        model.train(training)
    losses = torch.cat(row_losses).double()
    return Reference(loss=float(losses[torch.cat(trained)].mean()), spread=float(losses.std()))


@contextmanager
def _adapter_aside(model: Any) -> Iterator[None]:
    """Inside the block no adapter. PEFT would leave all of its weights trainable, those too that are to stay."""
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, before in trainable.items():
            parameter.requires_grad_(before)


@contextmanager
def _plain_attention(base: Any) -> Iterator[None]:
    """Inside the block no FlashAttention, which takes no float32."""
    config, before = base.config, base.config._attn_implementation
    if before == "flash_attention_2":
        config._attn_implementation = "sdpa" if base._supports_sdpa else "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _unpacked_layers(base: Any) -> Iterator[None]:
    """Inside the block the quantized linear layers of `base` multiply by their unpacked weights, in float32.

    Experts held in 4 bits are no linear layers, and stay as they are.
    """
    import bitsandbytes as bnb

    layers = [m for m in base.modules() if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))]
    for layer in layers:
        layer.forward = partial(_product, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    import bitsandbytes as bnb
    import torch

    packed = isinstance(layer, bnb.nn.Linear4bit)
    weights = unpacked_4bit(layer.weight, layer.weight.quant_state) if packed else _unpacked_8bit(layer)
    product = torch.cat([x.float() @ weight.t() for weight in weights], dim=-1)
    if layer.bias is not None:
        product += layer.bias
    return product.to(x.dtype)


def unpacked_4bit(packed: torch.Tensor, state: Any) -> Iterator[torch.Tensor]:
    """Rows of the float32 weights, some at a time, by the format's own rule: two codes a byte, high half first, a
    scale a block, which double quantization keeps in 8 bits itself (arXiv:2305.14314).
    """
    import torch

    height, width = state.shape
    scales = state.absmax
    if state.nested:
        inner = state.state2
        outer = inner.absmax.repeat_interleave(inner.blocksize)[: scales.numel()]
        scales = inner.code[scales.int()] * outer + state.offset
    codes = torch.arange(256, device=packed.device)
    pairs = state.code[torch.stack((codes >> 4, codes & 15), dim=1)].float()
    # so many that a block never goes on in the next rows, whatever the width
    rows = max(1, UNPACKED_AT_ONCE // (width * state.blocksize)) * state.blocksize
    for first in range(0, height, rows):
        begin, end = first * width, min(first + rows, height) * width
        values = pairs.index_select(0, packed.flatten()[begin // 2 : (end + 1) // 2].int()).flatten()[: end - begin]
        blocks = torch.nn.functional.pad(values, (0, -values.numel() % state.blocksize)).view(-1, state.blocksize)
        blocks *= scales[begin // state.blocksize :][: len(blocks), None]
        yield blocks.flatten()[: end - begin].view(-1, width)


def _unpacked_8bit(layer: Any) -> Iterator[torch.Tensor]:
    """As unpacked_4bit: a whole number a weight, of 127 of which its row's scale is the size (arXiv:2208.07339)."""
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    rows = max(1, UNPACKED_AT_ONCE // layer.in_features)
    for weight, scale in zip(layer.weight.split(rows), scales.split(rows), strict=True):
        yield weight.float() * scale[:, None] / 127
