"""Tiny configurations of models with towers for pictures and sounds, as AutoConfig.for_model takes them."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN3_VISION = QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}

# name -> (model type, settings of the text model, all others)
WRAPPERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": ("gemma3", {"sliding_window": 64}, {"vision_config": VISION, "mm_tokens_per_image": 4}),
    "gemma4": (
        "gemma4",
        {"num_hidden_layers": 6, "sliding_window": 64, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
         "num_kv_shared_layers": 0},
        {"vision_config": VISION | {"head_dim": 16, "num_key_value_heads": 2}, "audio_config": None},
    ),
    "qwen2-vl": (
        "qwen2_vl", MROPE, {"vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}}
    ),
    "qwen2.5-vl": ("qwen2_5_vl", MROPE, {"vision_config": QWEN_VISION | {"fullatt_block_indexes": [1]}}),
    "qwen3-vl": ("qwen3_vl", MROPE, {"vision_config": QWEN3_VISION}),
    "qwen3-vl-moe": (
        "qwen3_vl_moe",
        MROPE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        {"vision_config": QWEN3_VISION},
    ),
    "mistral-small-3.1": ("mistral3", {"model_type": "mistral"}, {"vision_config": VISION | {"head_dim": 16}}),
    "ministral-3": ("mistral3", {"model_type": "ministral3"}, {"vision_config": VISION | {"head_dim": 16}}),
    "llava": ("llava", {"model_type": "llama"}, {"vision_config": VISION | {"model_type": "clip_vision_model"}}),
    "smolvlm": ("smolvlm", {"model_type": "llama"}, {"vision_config": VISION}),
    "idefics3": ("idefics3", {"model_type": "llama"}, {"vision_config": VISION}),
    "internvl": (
        "internvl",
        {"model_type": "qwen2"},
        {"vision_config": VISION | {"image_size": [28, 28], "patch_size": [14, 14]}},
    ),
    "lfm2-vl": (
        "lfm2_vl", {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, {"vision_config": VISION}
    ),
    "glm-4v": (
        "glm4v",
        {"rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
        {"vision_config": QWEN_VISION | {"image_size": 28}},
    ),
    # Of these transformers opens the text model alone
    "qwen3.5": (
        "qwen3_5",
        {"num_hidden_layers": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
         "linear_num_value_heads": 2,
         "rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25}},
        {"vision_config": QWEN_VISION | {"num_position_embeddings": 16}},
    ),
    "llama-4": (
        "llama4",
        {"intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 64},
        {"vision_config": VISION | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}},
    ),
    "llama-3.2-vision": (
        "mllama",
        {"num_hidden_layers": 4, "cross_attention_layers": [1]},
        {"vision_config": VISION | {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 64,
                                    "intermediate_layers_indices": [1]}},
    ),
    # Its configuration is that of the text model, with the towers' within
    "phi-4-multimodal": (
        "phi4_multimodal",
        {},
        {"vision_config": VISION | {"crop_size": 28},
         "audio_config": {"hidden_size": 32, "intermediate_size": 64, "num_blocks": 2, "num_attention_heads": 2,
                          "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}},
    ),
}  # fmt: skip
TEXT_ALONE = ("qwen3.5", "llama-4", "llama-3.2-vision")


def wrapper_config(name: str, tokenizer: Any) -> Any:
    """The configuration, with the tokenizer's words."""
    from transformers import AutoConfig

    model_type, text, others = WRAPPERS[name]
    words = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if name == "gemma4":
        words["vocab_size_per_layer_input"] = len(tokenizer)
    whole = TEXT | words | text
    if model_type == "phi4_multimodal":
        return AutoConfig.for_model(model_type, **whole, **others)
    return AutoConfig.for_model(model_type, text_config=whole, **others)
