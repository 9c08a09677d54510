"""One small configuration for each model family: few and narrow layers, but the family's own structure."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

LAYERS = 12
SHAPE: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = SHAPE | {"head_dim": 32}  # heads * head_dim is not the hidden size
MOE = HEAD | {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2}
LATENT = SHAPE | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}

# name -> (transformers' model type, its settings)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", SHAPE | {"num_key_value_heads": 4}),
    "llama3": ("llama", SHAPE | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
               "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}}),
    "smollm2": ("llama", SHAPE | {"tie_word_embeddings": True}),
    "smollm3": ("smollm3", SHAPE | {"no_rope_layer_interval": 4}),
    "qwen2": ("qwen2", SHAPE | {"tie_word_embeddings": True}),
    "qwen2_window": ("qwen2", SHAPE | {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 4}),
    "qwen2_moe": ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 96, "decoder_sparse_step": 1}),
    "qwen3": ("qwen3", HEAD),
    "qwen3_moe": ("qwen3_moe", MOE | {"mlp_only_layers": [0]}),
    "qwen3_next": ("qwen3_next", MOE | {"shared_expert_intermediate_size": 48, "linear_key_head_dim": 16,
                   "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}),
    "mistral": ("mistral", SHAPE | {"sliding_window": 32}),
    "ministral": ("ministral", HEAD | {"sliding_window": 32,
                  "layer_types": ["full_attention", *["sliding_attention"] * 3] * (LAYERS // 4)}),
    "ministral3": ("ministral3", HEAD),
    "mixtral": ("mixtral", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("gemma", HEAD | {"num_key_value_heads": 1}),
    "gemma2": ("gemma2", HEAD | {"sliding_window": 32}),
    "gemma3": ("gemma3_text", HEAD | {"sliding_window": 32, "num_hidden_layers": 14}),
    "phi2": ("phi", SHAPE | {"num_key_value_heads": 4}),
    "phi3": ("phi3", SHAPE | {"sliding_window": 32}),
    "phi4": ("phi3", SHAPE | {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 64,
             "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [2.0] * 6,
             "short_factor": [1.0] * 6}}),
    "phimoe": ("phimoe", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "pythia": ("gpt_neox", SHAPE),
    "gpt2": ("gpt2", {"vocab_size": 500, "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 512,
             "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("opt", {"vocab_size": 500, "hidden_size": 64, "ffn_dim": 160, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "max_position_embeddings": 512, "word_embed_proj_dim": 64}),
    "opt350m": ("opt", {"vocab_size": 500, "hidden_size": 64, "ffn_dim": 160, "num_hidden_layers": LAYERS,
                "num_attention_heads": 4, "max_position_embeddings": 512, "word_embed_proj_dim": 32,
                "do_layer_norm_before": False}),
    "bloom": ("bloom", {"vocab_size": 500, "hidden_size": 64, "n_layer": LAYERS, "n_head": 4}),
    "falcon7b": ("falcon", {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": LAYERS,
                 "num_attention_heads": 4, "multi_query": True, "parallel_attn": True}),
    "falcon40b": ("falcon", {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": LAYERS,
                  "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon_rw": ("falcon", {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": LAYERS,
                  "num_attention_heads": 4, "alibi": True, "multi_query": False, "parallel_attn": False,
                  "bias": True}),
    "stablelm": ("stablelm", SHAPE | {"use_qkv_bias": True, "num_key_value_heads": 4}),
    "olmo2": ("olmo2", SHAPE),
    "olmo3": ("olmo3", SHAPE | {"sliding_window": 32}),
    "granite": ("granite", SHAPE | {"tie_word_embeddings": True}),
    "granitemoe": ("granitemoe", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "starcoder2": ("starcoder2", SHAPE | {"use_bias": True}),
    "cohere": ("cohere", SHAPE),
    "cohere2": ("cohere2", SHAPE | {"sliding_window": 32}),
    "internlm3": ("internlm3", HEAD | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e7, "factor": 6.0}}),
    "exaone4": ("exaone4", SHAPE | {"sliding_window": 32, "sliding_window_pattern": 4}),
    "nemotron": ("nemotron", SHAPE),
    "deepseek_v2": ("deepseek_v2", LATENT | {"first_k_dense_replace": 1}),
    "deepseek_v2_lite": ("deepseek_v2", LATENT | {"first_k_dense_replace": 1, "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", LATENT | {"first_k_dense_replace": 3, "n_group": 4, "topk_group": 2}),
    "glm4": ("glm4", HEAD | {"attention_bias": True}),
    "gpt_oss": ("gpt_oss", HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}),
    "llama4": ("llama4_text", HEAD | {"intermediate_size_mlp": 96, "num_local_experts": 4,
               "interleave_moe_layer_step": 2, "attention_chunk_size": 64}),
}  # fmt: skip


def family_config(name: str, **settings: Any) -> PreTrainedConfig:
    """The small configuration of a family. settings: of it, in place of its own."""
    model_type, own = FAMILIES[name]
    return AutoConfig.for_model(model_type, **(own | settings))
