"""What a plan must know of a model, read from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from autoft.schema import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape(Record):
    """Architecture figures of a decoder-only language model.

    name: what a person calls it. Parameters are counted, not bytes, each stored tensor once (tied weights once):
    linear_params: weights of the linear layers that 4-bit quantization replaces; other_params: all the rest.
    expert_params: of other_params, those of experts that experts_4bit packs.
    tower_params: those of towers for pictures and sounds, which training on text leaves alone.
    max_position: longest sequence the model was made for, in tokens.
    """

    name: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    tied_embeddings: bool
    linear_params: int
    other_params: int
    expert_params: int = 0
    tower_params: int = 0

    @property
    def total_params(self) -> int:
        return self.linear_params + self.other_params
