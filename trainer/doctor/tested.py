"""The versions that were tested together: those of constraints.txt that a run imports. A test compares the two."""

from __future__ import annotations

TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "trl": "1.16.0",
    "datasets": "5.2.0",
    "gguf": "0.19.0",
    "huggingface_hub": "2.4.0",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "numpy": "2.4.6",
    "pyarrow": "26.0.1",
    "pydantic": "2.14.3",
}
