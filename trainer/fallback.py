"""What a run does when memory is exhausted: smaller micro-batches, then keep less of the forward. The result stays."""

from __future__ import annotations

from typing import Any

from autoft.trainer.recipe import Recipe


class Fallbacks:
    """The ways left for `model`, the cheapest first: each needs less memory and more time than the one before.

    micro_batch: rows in one forward and backward now.
    """

    def __init__(self, model: Any, recipe: Recipe, device: str) -> None:
        self.model = model
        self.device = device
        self.micro_batch = recipe.micro_batch
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
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "micro_batch": self.micro_batch,
            "gradient_checkpointing": self.gradient_checkpointing,
            "offload_checkpoints": self.offload_checkpoints,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the ways that were taken when `state` was made."""
        self.micro_batch = min(self.micro_batch, state["micro_batch"])
        if state["gradient_checkpointing"] and not self.gradient_checkpointing:
            self._checkpoint()
        if state["offload_checkpoints"] and not self.offload_checkpoints:
            self._offload()

    def _checkpoint(self) -> None:
        from autoft.trainer.build import checkpoint_layers

        checkpoint_layers(self.model)
        self.gradient_checkpointing = True

    def _offload(self) -> None:
        from autoft.trainer.offload import offload_checkpoints

        offload_checkpoints(self.model)
        self.offload_checkpoints = True
