"""`main([])`: what PyTorch finds, as JSON: [{"uuid", "gib"}, ...]."""

from __future__ import annotations

import json


def main(_: list[str]) -> None:
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    print(json.dumps([{"uuid": str(each.uuid), "gib": each.total_memory >> 30} for each in found]))
