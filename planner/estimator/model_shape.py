"""ModelShape from a configuration and the model built from it without storage, whose weights are counted."""

from __future__ import annotations

from typing import Any

from autoft.errors import ModelError
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.model.build import towers


def model_shape(name: str, config: Any, base: Any) -> ModelShape:
    """Architecture figures of the causal language model that `config` describes.

    base: built from it, without storage. Raises: ModelError for a configuration without them.
    """
    text = config.get_text_config()
    heads = _first(text, "num_attention_heads", default=1)
    hidden = _first(text, "hidden_size")
    linear, total = _count(base)
    return ModelShape(
        name=name,
        model_type=config.model_type,
        num_layers=_first(text, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_first(text, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        num_heads=heads,
        num_kv_heads=_first(text, "num_key_value_heads", default=heads),
        head_dim=_first(text, "head_dim", default=hidden // heads),
        vocab_size=text.vocab_size,
        max_position=max_position(config),
        tied_embeddings=bool(base.config.tie_word_embeddings),
        linear_params=linear,
        other_params=total - linear,
        expert_params=_count_experts(base),
        tower_params=sum(p.numel() for name in towers(base) for p in base.get_submodule(name).parameters()),
    )


def max_position(config: Any) -> int:
    """The longest sequence that the model was made for, in tokens."""
    return _first(config.get_text_config(), "max_position_embeddings", default=2048)


def _count(base: Any) -> tuple[int, int]:
    """(weights of the layers that 4-bit quantization takes, all weights), each stored tensor once."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = base.get_output_embeddings()
    linear = [m.weight for m in base.modules() if type(m) in (torch.nn.Linear, Conv1D) and m is not head]
    return sum({id(w): w.numel() for w in linear}.values()), sum(p.numel() for p in base.parameters())


def _count_experts(base: Any) -> int:
    if not any(type(module).__name__.endswith("Experts") for module in base.modules()):
        return 0  # without the imports that packing experts takes
    from autoft.trainer.model.experts import expert_weights

    return sum(module.get_parameter(name).numel() for module, name in expert_weights(base))


def _figure(config: Any, name: str) -> int | None:
    """The configuration's figure; where layers differ in it, the largest."""
    spec = getattr(config, "_heterogeneity_spec", None)
    if spec is not None and name in spec.per_layer_attributes:
        return max(int(getattr(layer, name)) for layer in config.per_layer_config)
    value: int | None = getattr(config, name, None)
    return value


def _first(config: Any, *names: str, default: int | None = None) -> int:
    value = next((v for v in (_figure(config, name) for name in names) if v is not None), default)
    if value is None:
        raise ModelError(
            f"the configuration has none of {', '.join(names)}", fix="give the config.json of a causal language model"
        )
    return int(value)
