"""The decoder layers of a model: where they are."""

from __future__ import annotations

from typing import Any

import torch


def decoder_layers(base: Any) -> tuple[str, torch.nn.ModuleList] | None:
    """(path in `base`, the list) of its decoder layers, without an adapter; None where it has no list of them."""
    count = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    within = {id(module) for module in base.get_decoder().modules()}  # a vision tower may have as many layers
    lists = [
        (path, module)
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and id(module) in within
    ]
    return min(lists, key=lambda item: item[0].count("."), default=None)
