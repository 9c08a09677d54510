"""What a run does when memory is exhausted: smaller micro-batches, then keep less of the forward. The result stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoft.trainer.recipe import Recipe

_LIMITS = ("micro_batch", "row_tokens")  # the least is what all can do; of the others, what one needs


class Fallbacks:
    """The ways left for `model`, the cheapest first: each needs less memory and more time than the one before.

    micro_batch: rows in one forward and backward now. row_tokens: of a packed row at most; longer ones are cut between
    their examples. longest_example: its tokens, since nothing cuts an example.
    """

    def __init__(self, model: Any, recipe: Recipe, device: str, longest_example: int) -> None:
        self.model = model
        self.device = device
        self.micro_batch = recipe.micro_batch
        self.row_tokens = recipe.seq_len
        self.fewest_tokens = longest_example if recipe.packing else recipe.seq_len
        self.gradient_checkpointing = recipe.gradient_checkpointing and recipe.checkpoint_every == 1
        self.offload_checkpoints = recipe.offload_checkpoints

    def take(self) -> str | None:
        """The next one; its name as `Recovered` has it, None when there is none left."""
        if self.micro_batch > 1:
            self.micro_batch //= 2
            return "micro_batch"
        if not self.gradient_checkpointing:
            self._checkpoint()
            return "gradient_checkpointing"
        if not self.offload_checkpoints and self.device == "cuda":
            self._offload()
            return "offload_checkpoints"
        if self.row_tokens > self.fewest_tokens:
            self.row_tokens = max(self.row_tokens // 2, self.fewest_tokens)
            return "row_tokens"
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "micro_batch": self.micro_batch,
            "gradient_checkpointing": self.gradient_checkpointing,
            "offload_checkpoints": self.offload_checkpoints,
            "row_tokens": self.row_tokens,
        }

    def agreed(self, of_all: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The state that has room for what each process, as `state` tells it, had to do."""
        columns = zip(self.state(), zip(*of_all, strict=True), strict=True)
        return {name: int(min(values)) if name in _LIMITS else any(values) for name, values in columns}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the ways that were taken when `state` was made."""
        self.micro_batch = min(self.micro_batch, state["micro_batch"])
        self.row_tokens = min(self.row_tokens, state.get("row_tokens", self.row_tokens))
        if state["gradient_checkpointing"] and not self.gradient_checkpointing:
            self._checkpoint()
        if state["offload_checkpoints"] and not self.offload_checkpoints:
            self._offload()

    def _checkpoint(self) -> None:
        from autoft.trainer.model.build import checkpoint_layers

        checkpoint_layers(self.model)
        self.gradient_checkpointing = True

    def _offload(self) -> None:
        from autoft.trainer.model.offload import offload_checkpoints

        offload_checkpoints(self.model)
        self.offload_checkpoints = True
