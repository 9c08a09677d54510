"""Adafactor of transformers, whose float32 state stays float32 when a checkpoint of 16-bit weights is loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers.optimization import Adafactor as Adafactor_


class Adafactor(Adafactor_):  # type: ignore[misc]
    """PyTorch loads an optimizer's state in the dtype of the weights, which rounds what a step has kept in float32."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(parameters, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[parameter][name] = value.to(parameter.device, copy=True)
