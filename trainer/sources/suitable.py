"""Is this a model that autoft can train? Told from its configuration, before anything is built or loaded."""

from __future__ import annotations

import re
from typing import Any

from autoft.errors import ModelError

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

# Causal language models whose forward is not that of tokens alone, by what modeling_*.py of transformers 5.23 does
_OTHER_INPUTS = {
    "blt": "joins bytes to patches whose lengths depend on the text, so the memory of a step cannot be planned",
    "kyutai_speech_to_text": "takes codes of a sound beside each token, and autoft trains on text",
}


def refuse_other_inputs(config: Any) -> None:
    """Raises: ModelError for a model that cannot be trained on token ids alone."""
    reason = _OTHER_INPUTS.get(config.model_type)
    if reason is not None:
        raise ModelError(f"{config.model_type} {reason}", fix="choose another model")


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
    auto_class(config)
    if _sees_the_future(config):
        # PaliGemma's text sees all of the prompt, and it writes
        what = f"the tokens of {name}" if has_towers(config) else f"{name} is an encoder: its tokens"
        raise ModelError(
            f"{what} see those after them, and autoft trains causal language models",
            fix="choose a decoder-only model",
        )
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        settings = quantized if isinstance(quantized, dict) else quantized.to_dict()
        raise ModelError(
            f"the weights are already quantized ({settings.get('quant_method')}), and training starts from 16-bit ones",
            fix="give the unquantized model",
        )


def missing_library(model: str, error: ImportError) -> ModelError:
    """transformers tells in prose which library a model needs, and how to install it. model: what to call it."""
    reason = " ".join(str(error).split())
    library, install = re.search(r"requires the (\S+) library", reason), re.search(r"`(pip install [^`]+)`", reason)
    what = f"needs the library {library[1]}, which is not installed" if library else f"cannot be built: {reason[:200]}"
    return ModelError(f"{model} {what}", fix=install[1] if install else "install what its model card names")


def _sees_the_future(config: Any) -> bool:
    """BERT and its kin speak only where their configuration says so; embedding models of Gemma's say it another way."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    # BertGeneration has no masked head: it is made of a BERT. GPT-NeoX has is_decoder too, and heeds it nowhere
    encoders = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"}
    encoder = config.model_type in encoders and getattr(config, "is_decoder", None) is False
    return encoder or getattr(config.get_text_config(), "use_bidirectional_attention", None) in (True, "all")


def _kind(architecture: str) -> str | None:
    return next((kind for head, kind in _OTHER_HEADS.items() if architecture.endswith(head)), None)


def has_towers(config: Any) -> bool:
    """Whether a checkpoint of this configuration holds towers for pictures or sounds."""
    return any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config"))


def auto_class(config: Any) -> Any:
    """The Auto class of transformers for this configuration: text alone where it knows one, else with its towers.

    Raises: ModelError where it knows neither.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    if type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return transformers.AutoModelForMultimodalLM
    raise ModelError(
        f"{config.model_type} is not a causal language model that transformers knows", fix="choose another model"
    )
