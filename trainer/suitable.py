"""Is this a model that autoft can train? Told from its configuration, before anything is built or loaded."""

from __future__ import annotations

from typing import Any

from autoft.errors import ModelError
from autoft.profiles.model_catalogue import model_profiles

# What a model is whose configuration names such a class
_OTHER_HEADS = {
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForMultipleChoice": "a classifier of choices",
    "ForMaskedLM": "an encoder",
    "ForPreTraining": "an encoder",
    "ForRewardModel": "a reward model",
    "RewardModel": "a reward model",
}


def refuse_unsuitable(config: Any) -> None:
    """Refuse what is no causal language model, or has quantized weights. Raises: ModelError with the true reason."""
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder-decoder, and autoft trains causal language models", fix="choose a decoder-only model"
        )
    kinds = [_kind(architecture) for architecture in config.architectures or ()]
    if kinds and all(kinds):
        raise ModelError(
            f"{config.architectures[0]} is {kinds[0]}, and autoft trains causal language models",
            fix="choose the model that it was made from, or another one",
        )
    _refuse_unknown_class(config)
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        settings = quantized if isinstance(quantized, dict) else quantized.to_dict()
        raise ModelError(
            f"the weights are already quantized ({settings.get('quant_method')}), and training starts from 16-bit ones",
            fix="give the unquantized model",
        )


def _kind(architecture: str) -> str | None:
    return next((kind for head, kind in _OTHER_HEADS.items() if architecture.endswith(head)), None)


def _refuse_unknown_class(config: Any) -> None:
    from transformers.models.auto import modeling_auto

    if type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    multimodal = (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING)
    if any(type(config) in mapping for mapping in multimodal):
        text_models = _with_same_text_model(config)
        raise ModelError(
            f"{config.model_type} is a vision-language model, which autoft does not train",
            fix=f"a text model: {', '.join(text_models)}" if text_models else "choose a text model of its family",
        )
    raise ModelError(
        f"{config.model_type} is not a causal language model that transformers knows", fix="choose another model"
    )


def _with_same_text_model(config: Any) -> list[str]:
    """Models of the catalogue with the layers and widths of the language model inside."""
    text, names = config.get_text_config(), ("num_hidden_layers", "hidden_size", "intermediate_size")
    figures = [getattr(text, name, None) for name in names]
    return [p.name for p in model_profiles().values() if [p.config.get(name) for name in names] == figures][:3]
