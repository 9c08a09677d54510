"""The trainer's own step on tensors without storage, every allocation of it in order: the way to a Rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from autoft.errors import ModelError
from autoft.planner.kernels.attention import Backend
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.assembly import Assembly, assemblies
from autoft.planner.rehearsal.layers import (
    Depth,
    Extension,
    MismatchError,
    depth_of,
    shortened,
)
from autoft.planner.rehearsal.loading import (
    Weight,
    largest_decomposition,
    streamed_bytes,
)
from autoft.planner.rehearsal.loop import OURS, Loop
from autoft.planner.rehearsal.optimizer import optimizer_events
from autoft.planner.rehearsal.rehearsal import Rehearsal, assemble
from autoft.planner.rehearsal.step import MicroBatches, Step, real_masks
from autoft.trainer.model.build import build_base
from autoft.trainer.optimizers.optim import is_faster
from autoft.trainer.recipe import Recipe

# Inputs that code asks for by name where it is given text alone
OTHER_INPUTS = {
    "pixel_values": "an image",
    "input_features": "a sound",
    "mm_token_type_ids": "the input mm_token_type_ids",
}
# What models and libraries raise that are asked for what a rehearsal cannot give
CANNOT_BE_REHEARSED = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ImportError, NameError)
Result = TypeVar("Result")
KEPT_MODELS, KEPT_MICRO_BATCHES, KEPT_EVALUATIONS = 8, 16, 64


def rehearse(
    recipe: Recipe,
    config: Any,
    device: Device,
    *,
    depth: Depth | None,
    loop: Loop = OURS,
    backend: Backend | None = None,
    accumulate: bool = False,
    kept: Kept | None = None,
) -> Rehearsal:
    """The events of loading and of two optimizer steps of `recipe` on `device`.

    config: of the whole model. depth: which of its layers to run (from `find_depth`), None for all.
    accumulate: a step has more than one micro-batch. kept: from earlier calls with the same config. Raises: ModelError.
    """
    if depth and recipe.checkpoint_every > 1:
        depth = depth.alternating(recipe.checkpoint_every)
    shared = kept or Kept()
    try:
        return _where_layers_join(
            depth, lambda some: _rehearse(recipe, config, device, some, loop, backend, accumulate, shared)
        )
    except CANNOT_BE_REHEARSED as error:
        raised = " ".join(str(error).split())[:200]
        other = next((other for name, other in OTHER_INPUTS.items() if name in raised), None)
        if other is not None:
            raise ModelError(
                f"a {config.model_type} model takes no text without {other}, and autoft trains on text",
                fix="choose another model",
            ) from error
        why = f"it asks tensors for values, and a rehearsal has none ({raised})" if "meta" in raised else raised
        raise ModelError(
            f"a step of {config.model_type} with these settings cannot be rehearsed: {why}",
            fix="other settings (attention, loss, method), or another model",
        ) from error


def _where_layers_join(depth: Depth | None, rehearsed: Callable[[Depth | None], Result]) -> Result:
    """What comes of the first that does: these layers, a whole run of their kinds, all. Raises: ValueError."""
    for some in [depth, depth.full, None] if depth else [None]:
        with suppress(MismatchError):
            return rehearsed(some)
    raise ValueError("its layers do not join")


def find_depth(recipe: Recipe, config: Any) -> Depth | None:
    """Which layers stand for all; the same for every recipe of one model that keeps its attention."""
    plain = Recipe(attention=recipe.attention, base_dtype=recipe.base_dtype)
    return depth_of(build_base(plain, config), config)


def _rehearse(
    recipe: Recipe,
    config: Any,
    device: Device,
    depth: Depth | None,
    loop: Loop,
    backend: Backend | None,
    accumulate: bool,
    kept: Kept,
) -> Rehearsal:
    around = (device, depth, loop, backend)
    resident = replace(recipe, streamed_layers=0)  # the step is the same wherever its weights wait
    with real_masks(packed=recipe.packing):
        step = _step_of(resident, config, device, depth, loop, backend, kept)
        batches = (replace(resident, optimizer="adamw_torch"), *around, accumulate)
        if batches not in kept.micro_batches:
            kept.micro_batches[batches] = step.micro_batches(accumulate=accumulate)
        micro_batches = kept.micro_batches[batches]
        first = micro_batches.first
    alone = replace(
        resident,
        gradient_checkpointing=False,
        checkpoint_every=1,
        offload_checkpoints=False,
        optimizer="adamw_torch",
        packing=False,
    )
    evaluated = (alone, *around)
    if not loop.evaluates:
        kept.evaluations[evaluated] = {}
    elif evaluated not in kept.evaluations:
        with real_masks(packed=False):  # held-out rows are never packed
            kept.evaluations[evaluated] = step.of(replace(step.recipe, packing=False)).evaluation()
    trained = [w for w in step.weights if w.trained]
    shapes = tuple((w.shape, w.dtype) for w in trained)
    faster = frozenset(at for at, w in enumerate(trained) if is_faster(w.name, len(w.shape), recipe))
    optimizer = optimizer_events(shapes, recipe.optimizer, device, loop.clip, faster)
    rehearsal = assemble(recipe, step.weights, first, micro_batches.rest, optimizer, loop, device)
    if recipe.streamed_layers:
        rehearsal = replace(
            rehearsal,
            streamed_bytes=streamed_bytes(recipe, step.weights),
            layer_work=(first[0].work_of("forward"), first[0].work_of("backward")),
        )
    return replace(
        rehearsal,
        evaluation=kept.evaluations[evaluated],
        offloaded_bytes=micro_batches.offloaded_bytes,
        decomposed_bytes=largest_decomposition(recipe, step.weights),
    )


def rehearse_prompt(
    recipe: Recipe, config: Any, device: Device, *, depth: Depth | None, adapter: bool, kept: Kept
) -> tuple[list[Weight], Extension]:
    """(what a model of `recipe` stores, the events of reading `micro_batch` prompts of `seq_len` tokens).

    adapter: whether it answers, and not the base alone. The rest as `rehearse` has it.
    Raises: ModelError where the model's cache cannot be rehearsed.
    """

    def read(some: Depth | None) -> tuple[list[Weight], Extension]:
        with real_masks(packed=False):
            step = _step_of(recipe, config, device, some, OURS, None, kept)
            return step.weights, step.prompt(adapter=adapter)

    try:
        return _where_layers_join(depth, read)
    except CANNOT_BE_REHEARSED as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"an answer of {config.model_type} with these settings cannot be rehearsed: {reason}",
            fix="other settings (attention, method), or another model",
        ) from error


def _step_of(
    recipe: Recipe,
    config: Any,
    device: Device,
    depth: Depth | None,
    loop: Loop,
    backend: Backend | None,
    kept: Kept,
) -> Step:
    """The step of `recipe`, whose model may be one that was built before."""
    around = (device, depth, loop, backend)
    model = (replace(recipe, micro_batch=1, seq_len=1, optimizer="adamw_torch"), *around)
    kept.make_room()
    if model not in kept.steps:
        rehearsed = shortened(config, depth.rehearsed) if depth else config
        loaded = (depth, recipe.weights_dtype, recipe.attention)
        if loaded not in kept.assemblies:
            kept.assemblies[loaded] = assemblies(rehearsed, recipe)
        kept.steps[model] = Step(recipe, rehearsed, kept.assemblies[loaded], *around)
    return kept.steps[model].of(recipe)


@dataclass(slots=True)
class Kept:
    """What rehearsals of one configuration share: models, by all that shapes them, how weights load, evaluations, and
    micro-batches, which are the same whatever the optimizer and wherever the layers wait."""

    steps: dict[Any, Step] = field(default_factory=dict)
    micro_batches: dict[Any, MicroBatches] = field(default_factory=dict)
    assemblies: dict[Any, dict[str, Assembly]] = field(default_factory=dict)
    evaluations: dict[Any, dict[str, Extension]] = field(default_factory=dict)

    def make_room(self) -> None:
        """Let go of what has been kept longest once it is much."""
        shelves: tuple[tuple[dict[Any, Any], int], ...] = (
            (self.steps, KEPT_MODELS),
            (self.micro_batches, KEPT_MICRO_BATCHES),
            (self.evaluations, KEPT_EVALUATIONS),
        )
        for shelf, most in shelves:
            if len(shelf) >= most:
                del shelf[next(iter(shelf))]
