"""The versions that were tested together: those of constraints.txt that a run imports. A test compares the two."""

from __future__ import annotations

from autoft.profiles.host import installed_version
from autoft.trainer.compat import TABLES

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


def untested() -> dict[str, str]:
    """Libraries with hooks whose installed version is not the tested one, and that version: "2.13.0+cpu" is 2.13.0."""
    versions = {name: installed_version(name) for name in TABLES}
    return {
        name: version
        for name, version in versions.items()
        if version is not None and version.partition("+")[0] != TESTED[name]
    }
