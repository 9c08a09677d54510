"""AdamW whose 8-bit state the driver moves to the host when the card is full (arXiv:2305.14314, section 3)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from bitsandbytes.optim import PagedAdamW8bit

STATES = ("state1", "state2")


class PagedAdamW(PagedAdamW8bit):  # type: ignore[misc]
    """bitsandbytes' own, whose state stays paged when a checkpoint is loaded, and whose paged memory is used again.

    bitsandbytes 0.50 loads a state into the card's own memory, and has no way to give paged memory back.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], **settings: Any) -> None:
        self._unused: dict[torch.nn.Parameter, list[torch.Tensor]] = defaultdict(list)
        super().__init__(parameters, **settings)

    @property
    def paged_bytes(self) -> int:
        """Of the state that can leave the card."""
        return sum(buffer.nbytes for buffers in self._paged().values() for buffer in buffers)

    def forget(self) -> None:
        """Be as before the first step."""
        self._unused.update(self._paged())
        self.state.clear()

    def get_state_buffer(self, p: torch.nn.Parameter, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        unused = self._unused[p]
        return unused.pop().zero_() if unused else super().get_state_buffer(p, dtype=dtype)

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        self.forget()
        super().load_state_dict(state_dict, move_to_device=False)
        for parameter, values in self.state.items():
            for name, value in values.items():
                if name in STATES:
                    values[name] = self.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
                elif isinstance(value, torch.Tensor) and move_to_device:
                    values[name] = value.to(parameter.device)

    def _paged(self) -> dict[torch.nn.Parameter, list[torch.Tensor]]:
        """By parameter, in use or not."""
        paged = defaultdict(list, {parameter: list(unused) for parameter, unused in self._unused.items()})
        for parameter, values in self.state.items():
            buffers = [values[name] for name in STATES if name in values]
            paged[parameter] += [buffer for buffer in buffers if getattr(buffer, "is_paged", False)]
        return paged
