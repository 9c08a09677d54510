"""How much memory does one training step take? A closed form for now: every term is named, none is fitted to a run.

The rehearsal of the trainer's own step on ghost tensors will replace this file behind the same Estimate. Until then the
figure is a sum over an ordinary decoder (Llama-like: RMS norm, rotary attention, gated MLP); other families differ.
"""

from __future__ import annotations

from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import Dtype, Recipe

BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
FOUR_BIT_BLOCK = 64  # weights that share one scale; bitsandbytes' default
SCALES_BLOCK = 256  # scales that share one second-level scale under double quantization; arXiv:2305.14314, section 3
ADAPTED_LINEARS = 7  # q, k, v, o, gate, up, down
FUSED_TILE_BYTES = 2**28  # assumption: what a fused head holds of the logits at once

ASSUMPTIONS = (
    "memory is a closed form over a Llama-like decoder, no rehearsal of the step yet: it may be off by a half",
)


def step_components(recipe: Recipe, shape: ModelShape, trainable_params: int) -> dict[str, int]:
    """Bytes that live at the peak of a steady training step, by kind."""
    adapter = BYTES[recipe.adapter_dtype]
    state = 2 * adapter if recipe.optimizer == "adamw_torch" else 2
    weights, scales = base_weights(recipe, shape)
    return {
        "weights": weights,
        "quantization_state": scales,
        "adapter": trainable_params * adapter,
        "gradients": trainable_params * adapter,
        "optimizer": trainable_params * state,
        "activations": _activations(recipe, shape),
        "logits": _logits(recipe, shape),
    }


def base_weights(recipe: Recipe, shape: ModelShape) -> tuple[int, int]:
    """(bytes of the frozen weights, bytes of their quantization state)."""
    other = shape.other_params * (4 if recipe.kbit_upcast else BYTES[recipe.base_dtype])
    if recipe.quant_type is None:
        return other + shape.linear_params * BYTES[recipe.base_dtype], 0
    blocks = shape.linear_params // FOUR_BIT_BLOCK
    scales = blocks + 4 * blocks // SCALES_BLOCK if recipe.double_quant else 4 * blocks
    return other + shape.linear_params // 2, scales


def load_peak(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes while loading: all weights, and the largest tensor once more in 16 bits on its way to 4."""
    passing = max(shape.vocab_size * shape.hidden_size, shape.hidden_size * shape.intermediate_size)
    return sum(base_weights(recipe, shape)) + passing * BYTES[recipe.base_dtype]


def _activations(recipe: Recipe, shape: ModelShape) -> int:
    """What the forward keeps for the backward; with checkpointing each layer's input, and one layer whole."""
    tokens = recipe.micro_batch * recipe.seq_len
    layer = tokens * _layer_bytes_per_token(recipe, shape)
    if recipe.attention == "eager":
        layer += recipe.micro_batch * shape.num_heads * recipe.seq_len**2 * (4 + 2 * BYTES[recipe.base_dtype])
    if not recipe.gradient_checkpointing:
        return shape.num_layers * layer
    return shape.num_layers * tokens * shape.hidden_size * BYTES[recipe.base_dtype] + layer


def _layer_bytes_per_token(recipe: Recipe, shape: ModelShape) -> int:
    """One layer's saved tensors for one token.

    Norms keep their input in float32 and their output (2 of each); attention its input, queries, keys and values before
    and after rotation and its output; the MLP its input, gate, up, activation and product; each adapter its rank-sized
    middle, and without autocast its own copy of its input in the adapter's dtype.
    """
    compute, hidden = BYTES[recipe.base_dtype], shape.hidden_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    norms = 2 * hidden * (4 + compute)
    attention = compute * (hidden + 3 * queries + 4 * keys)
    mlp = compute * (hidden + 4 * shape.intermediate_size)
    adapters = ADAPTED_LINEARS * recipe.rank * compute
    if not recipe.autocast and recipe.adapter_dtype != recipe.base_dtype:
        adapters += BYTES[recipe.adapter_dtype] * (2 * hidden + queries + shape.intermediate_size)
    return norms + attention + mlp + adapters


def _logits(recipe: Recipe, shape: ModelShape) -> int:
    """The head's output with its float32 copy and gradient; at most a tile of it where the head is fused."""
    whole = recipe.micro_batch * recipe.seq_len * shape.vocab_size * (BYTES[recipe.base_dtype] + 4 + 4)
    return min(whole, FUSED_TILE_BYTES) if recipe.loss == "fused" else whole
