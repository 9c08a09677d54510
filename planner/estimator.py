"""Estimates of one model on one target: the closed form over the model's own counts."""

from __future__ import annotations

from typing import Any

from autoft.errors import ModelError
from autoft.planner import memory
from autoft.planner.estimate import Estimate
from autoft.planner.shape import model_shape
from autoft.planner.target import RESERVED_OVER_ALLOCATED, Target
from autoft.trainer.build import add_adapter, build_base, default_attention
from autoft.trainer.recipe import Attention, Method, Recipe


class Estimator:
    """Builds the model without storage once a question, and remembers the answer."""

    def __init__(self, name: str, config: Any, target: Target) -> None:
        """config: a transformers configuration. Raises: ModelError when it is none of a causal language model."""
        self.config = config
        self.target = target
        self.attention = default_attention(config)
        self.shape = model_shape(name, config, self.attention)
        self._trainable: dict[tuple[Any, ...], int] = {}
        self._refusal: dict[tuple[Method, Attention], ModelError | None] = {}

    def takes(self, recipe: Recipe) -> bool:
        """Whether the model can be trained by the recipe's method and attention at all."""
        return self._why_not(recipe) is None

    def estimate(self, recipe: Recipe) -> Estimate:
        """Memory and time of `recipe`. Raises: ModelError when the model cannot take it."""
        refusal = self._why_not(recipe)
        if refusal is not None:
            raise refusal
        trainable = self._trainable_params(recipe)
        components = memory.step_components(recipe, self.shape, trainable)
        allocated = sum(components.values())
        load = memory.load_peak(recipe, self.shape)
        reserved = int(max(allocated, load) * RESERVED_OVER_ALLOCATED)
        device_bytes = self.target.device_bytes(reserved)
        step_time, time_basis = self.target.step_time(recipe, self.shape)
        return Estimate(
            method="closed form",
            peak_allocated_bytes=allocated,
            peak_reserved_bytes=reserved,
            device_bytes=device_bytes,
            available_bytes=self.target.available_bytes,
            fits="yes" if device_bytes <= self.target.available_bytes else "no",
            components=components,
            phases={"load": load, "step": allocated},
            step_time_s=step_time,
            tokens_per_s=recipe.micro_batch * recipe.seq_len / step_time.middle,
            trainable_params=trainable,
            total_params=self.shape.total_params + trainable,
            assumptions=(*memory.ASSUMPTIONS, time_basis),
        )

    def _trainable_params(self, recipe: Recipe) -> int:
        key = (recipe.rank, recipe.target_modules)
        if key not in self._trainable:
            plain = Recipe(rank=recipe.rank, target_modules=recipe.target_modules, attention=self.attention)
            model = add_adapter(build_base(plain, self.config), plain)
            self._trainable[key] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return self._trainable[key]

    def _why_not(self, recipe: Recipe) -> ModelError | None:
        key = (recipe.method, recipe.attention)
        if key not in self._refusal:
            try:
                build_base(recipe, self.config)
                self._refusal[key] = None
            except ModelError as error:
                self._refusal[key] = error
        return self._refusal[key]
