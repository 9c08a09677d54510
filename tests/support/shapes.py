"""Models that are a config.json alone: planning needs no weights, and two layers take a third of what twenty take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# TinyLlama's widths: wide enough that memory is scarce somewhere and every saving counts
WIDE_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def save_shape(folder: Path, **changed: Any) -> str:
    """A folder with WIDE_LLAMA's configuration, some of it changed; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**WIDE_LLAMA, **changed}), encoding="utf-8")
    return str(folder)
