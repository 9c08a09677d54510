"""Models of real shapes and random weights: configurations as published in each model's config.json, no download.

`write_config` makes a folder that can be planned for, `write_weights` one that can be trained, `add_tokenizer` one that
`autoft run` takes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

SHARD_BYTES = 4 * 2**30
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # of ChatML: padding, begin, end
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TILE_VALUES = 2**24  # random values that all tensors are cut from; drawing each anew would take minutes

LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "rope_theta": 500000.0}
QWEN2 = {"model_type": "qwen2", "vocab_size": 151936, "rope_theta": 1000000.0, "tie_word_embeddings": True}
QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int | None = None) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **({} if kv_heads is None else {"num_key_value_heads": kv_heads}),
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": LLAMA3 | _sizes(2048, 8192, 16, 32) | {"head_dim": 64, "tie_word_embeddings": True},
    "llama-3.2-3b": LLAMA3 | _sizes(3072, 8192, 28, 24) | {"head_dim": 128, "tie_word_embeddings": True},
    "llama-3.1-8b": LLAMA3 | _sizes(4096, 14336, 32, 32),
    "llama-3.1-70b": LLAMA3 | _sizes(8192, 28672, 80, 64),
    "llama-2-7b": {"model_type": "llama", "vocab_size": 32000} | _sizes(4096, 11008, 32, 32, 32),
    "tinyllama-1.1b": {"model_type": "llama", "vocab_size": 32000} | _sizes(2048, 5632, 22, 32, 4),
    "qwen2.5-0.5b": QWEN2 | _sizes(896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": QWEN2 | _sizes(1536, 8960, 28, 12, 2),
    "qwen2.5-3b": QWEN2 | _sizes(2048, 11008, 36, 16, 2),
    "qwen2.5-7b": QWEN2 | _sizes(3584, 18944, 28, 28, 4) | {"vocab_size": 152064, "tie_word_embeddings": False},
    "qwen3-0.6b": QWEN3 | _sizes(1024, 3072, 28, 16) | {"tie_word_embeddings": True},
    "qwen3-4b": QWEN3 | _sizes(2560, 9728, 36, 32) | {"tie_word_embeddings": True},
    "qwen3-8b": QWEN3 | _sizes(4096, 12288, 36, 32) | {"tie_word_embeddings": False},
    "qwen3-30b-a3b": QWEN3
    | _sizes(2048, 6144, 48, 32, 4)
    | {"model_type": "qwen3_moe", "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
    | {"norm_topk_prob": True, "decoder_sparse_step": 1},
    "gemma-2b": {"model_type": "gemma", "vocab_size": 256000, "head_dim": 256} | _sizes(2048, 16384, 18, 8, 1),
    "gemma-2-2b": {"model_type": "gemma2", "vocab_size": 256000, "head_dim": 256, "sliding_window": 4096}
    | _sizes(2304, 9216, 26, 8, 4),
    "gemma-3-1b": {"model_type": "gemma3_text", "vocab_size": 262144, "head_dim": 256, "sliding_window": 512}
    | _sizes(1152, 6912, 26, 4, 1),
    "mistral-7b": {"model_type": "mistral", "vocab_size": 32768, "head_dim": 128, "sliding_window": None}
    | {"rope_theta": 1000000.0}
    | _sizes(4096, 14336, 32, 32, 8),
    "phi-3.5-mini": {"model_type": "phi3", "vocab_size": 32064, "sliding_window": 262144}
    | {"pad_token_id": 32000, "original_max_position_embeddings": 4096}
    | _sizes(3072, 8192, 32, 32, 32),
    "olmo-2-1b": {"model_type": "olmo2", "vocab_size": 100352, "rope_theta": 500000.0, "rms_norm_eps": 1e-6}
    | {"pad_token_id": 100277}
    | _sizes(2048, 8192, 16, 16, 16),
    "starcoder2-3b": {"model_type": "starcoder2", "vocab_size": 49152, "use_bias": True, "sliding_window": 4096}
    | {"rope_theta": 999999.4420358813, "hidden_act": "gelu_pytorch_tanh"}
    | _sizes(3072, 12288, 30, 24, 2),
    "granite-3.1-2b": {"model_type": "granite", "vocab_size": 49155, "tie_word_embeddings": True}
    | {"attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "logits_scaling": 8.0}
    | {"residual_multiplier": 0.22, "rope_theta": 5000000.0}
    | _sizes(2048, 8192, 40, 32, 8),
    "pythia-1b": {"model_type": "gpt_neox", "vocab_size": 50304, "rotary_pct": 0.25} | _sizes(2048, 8192, 16, 8),
    "mixtral-8x7b": {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
    | {"rope_theta": 1000000.0, "sliding_window": None}
    | _sizes(4096, 14336, 32, 32, 8),
    "smollm2-135m": {"model_type": "llama", "vocab_size": 49152, "tie_word_embeddings": True}
    | _sizes(576, 1536, 30, 9, 3),
    "olmoe-1b-7b": {"model_type": "olmoe", "vocab_size": 50304, "num_experts": 64, "num_experts_per_tok": 8}
    | _sizes(2048, 1024, 16, 16, 16),
    # for a smoke test on a CPU
    "tiny-llama": {"model_type": "llama", "vocab_size": 8192} | _sizes(256, 688, 4, 4, 2),
    "tiny-smollm2": {"model_type": "llama", "vocab_size": 49152, "tie_word_embeddings": True}
    | _sizes(128, 344, 2, 4, 2),
    "tiny-qwen3": QWEN3 | {"vocab_size": 8192, "head_dim": 64, "tie_word_embeddings": True} | _sizes(256, 512, 4, 4, 2),
}


def write_config(name: str, folder: Path, layers: int | None = None) -> Path:
    """`folder` with the config.json of a shape, which is all that an estimate needs. layers: in place of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"max_position_embeddings": 32768, "dtype": "bfloat16", **SHAPES[name]}
    if layers is not None:
        config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def write_weights(name: str, folder: Path, layers: int | None = None, *, empty: bool = False) -> Path:
    """`folder` with config.json and random bfloat16 weights in safetensors shards, named as the published ones are.

    Norms and biases are ones, the rest is normal with a deviation of 0.02. layers: as `write_config` has them.
    empty: all are zeros, which take no disk. A folder that is complete is left alone.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    index = folder / "model.safetensors.index.json"
    if index.exists():
        return folder
    config = AutoConfig.from_pretrained(write_config(name, folder, layers))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.tie_weights()
        buffers = {key: value for key, value in model.named_buffers() if key in model.state_dict()}
        state = revert_weight_conversion(model, {**dict(model.named_parameters()), **buffers})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    tile = memoryview((torch.randn(TILE_VALUES) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy())
    ones = memoryview(torch.ones(2**16, dtype=torch.bfloat16).view(torch.uint8).numpy())
    shards: list[dict[str, Any]] = [{}]
    for key, tensor in state.items():
        if sum(2 * t.numel() for t in shards[-1].values()) + 2 * tensor.numel() > SHARD_BYTES:
            shards.append({})
        shards[-1][key] = tensor
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files.update(dict.fromkeys(shard, file))
        _write_shard(folder / file, shard, *(() if empty else (tile, ones)))
    total = sum(2 * tensor.numel() for tensor in state.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}), encoding="utf-8")
    return folder


def add_tokenizer(folder: Path, tokenizer: Path | None = None) -> Path:
    """`folder` with the tokenizer of another model; without one, a token for each byte and the chat's special tokens.

    Random weights know no words, so any will do that is no larger.
    """
    if tokenizer is None:
        _byte_tokenizer().save_pretrained(folder)
        return folder
    for path in tokenizer.iterdir():
        if "token" in path.name or path.suffix == ".jinja" or path.name in ("vocab.json", "merges.txt"):
            shutil.copyfile(path, folder / path.name)
    return folder


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **names)


def _write_shard(path: Path, tensors: dict[str, Any], *values: memoryview) -> None:
    """The safetensors format: length of the header in 8 bytes, the header in JSON, the tensors one after another.

    values: those of matrices, and of all else; zeros without.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + 2 * tensor.numel()
        header[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if not values:
            file.truncate(8 + len(text) + end)
            return
        for tensor in tensors.values():
            source, left = values[tensor.dim() == 1], 2 * tensor.numel()
            while left:
                left -= file.write(source[: min(left, len(source))])
