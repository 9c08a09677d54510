"""RoPE scaling: rows longer than the model was made for, their positions squeezed into those that it knows."""

from __future__ import annotations

import copy
from typing import Any

from autoft.errors import ModelError
from autoft.trainer.recipe import Recipe, RopeScaling

# How many times the context the papers stretch it: Llama 2 from 4,096 to 131,072 tokens (arXiv:2309.00071), LLaMA from
# 2,048 to 32,768 (arXiv:2306.15595)
MOST_FACTOR: dict[RopeScaling, int] = {"yarn": 32, "linear": 16}


def scaled_config(config: Any, recipe: Recipe) -> Any:
    """The configuration with the recipe's RoPE scaling, itself where there is none.

    The factor is seq_len / max_position_embeddings. A row within the context needs no scaling and gets none.
    Raises: ModelError where the model's RoPE cannot be scaled.
    """
    if recipe.rope_scaling is None:
        return config
    refuse_scaling(config, recipe.rope_scaling)
    if recipe.seq_len <= context_of(config):
        return config
    return _stretched(config, recipe.rope_scaling, recipe.seq_len)


def refuse_scaling(config: Any, scaling: RopeScaling) -> None:
    """Refuse a model whose positions are no RoPE, or one that is scaled already. Raises: ModelError."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    native = context_of(config)
    if not rope or not native or getattr(text, "alibi", False):
        raise _refusal(f"{config.model_type} has no RoPE that transformers could scale")
    if text.nested_rope_parameter_keys(rope):
        raise _refusal(f"the layers of {config.model_type} have several kinds of RoPE")
    if rope["rope_type"] != "default" or getattr(text, "original_max_position_embeddings", native) != native:
        raise _refusal(f"its RoPE is scaled already ({rope['rope_type']}), to {native} tokens")
    try:
        ROPE_INIT_FUNCTIONS[scaling](_stretched(config, scaling, 2 * native).get_text_config())
    except (TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"rope_scaling={scaling}: transformers cannot compute it for {config.model_type}: {error}",
            fix="--set rope_scaling=linear" if scaling == "yarn" else "leave rope_scaling out",
        ) from error


def context_of(config: Any) -> int:
    """Tokens of the longest sequence that the model was made for; 0 where it does not say."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 0)


def snippet(scaling: RopeScaling, seq_len: int, base: str) -> str:
    """Python that makes `config`, the base's configuration with the scaling that an adapter was trained with."""
    rope = [f'"rope_type": "{scaling}"', f'"factor": {seq_len} / text.max_position_embeddings']
    if scaling == "yarn":
        rope.append('"original_max_position_embeddings": text.max_position_embeddings')
    return f"""config = AutoConfig.from_pretrained({base!r})
text = config.get_text_config()
text.rope_parameters = {{**text.rope_parameters, {", ".join(rope)}}}
text.max_position_embeddings = {seq_len}"""


def _stretched(config: Any, scaling: RopeScaling, seq_len: int) -> Any:
    """As transformers' modeling_rope_utils reads it: for yarn, too, how long the rows were before."""
    native, stretched = context_of(config), copy.deepcopy(config)
    text = stretched.get_text_config()
    text.rope_parameters = {**text.rope_parameters, "rope_type": scaling, "factor": seq_len / native}
    if scaling == "yarn":
        text.rope_parameters["original_max_position_embeddings"] = native
    text.max_position_embeddings = seq_len
    return stretched


def _refusal(why: str) -> ModelError:
    return ModelError(f"rope_scaling: {why}", fix="leave rope_scaling out, and --seq-len within the model's context")
