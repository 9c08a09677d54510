"""Switches of the libraries that are read from the environment, set before the libraries are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings

# What a user has set stays as it is: only what is missing is filled in.
DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # CUDA's own order is fastest first; NVML's, and so our probe's, is the bus's.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Weights one after another in a fixed order: four threads racing for memory reserve another amount every time.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    # From Hopper on PyTorch prefers cuDNN's attention, whose workspace no source tells
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
}


def prepare() -> None:
    """Quiet, private and predictable libraries. Call before torch or transformers is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def of_child() -> dict[str, str]:
    """The environment of a Python that is to find what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def quiet() -> None:
    """Turn off the progress bars that only their libraries' own calls turn off."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
