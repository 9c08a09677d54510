"""What a rehearsal gives: loading, two optimizer steps and the evaluation as events, from what was traced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autoft.errors import ModelError
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.layers import (
    Events,
    Extension,
    Ints,
    as_events,
)
from autoft.planner.rehearsal.loading import (
    Weight,
    load_phases,
)
from autoft.planner.rehearsal.loop import Loop, Phase
from autoft.planner.tracing.trace import KIND, Made
from autoft.planner.tracing.work import Work
from autoft.trainer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """phases: load, then first steps, then one steady step, in order. kinds: of every key.

    steady: name of the first phase of the steady step. work: of one micro-batch, and of an optimizer step.
    managed_bytes: of paged optimizer state, outside the device's allocator. offloaded_bytes: checkpoints on the host.
    streamed_bytes: of each layer whose weights wait on the host. layer_work: of all layers in a micro-batch's forward,
    and in its backward.
    makers: what made the storages from a key on, for those of the steps. weights: what the model stores.
    evaluation: what trainer/evaluation/evaluate.py does with one batch, by name, each with keys of its own.
    decomposed_bytes: of the host, for first values that are a part of the largest layer's weight.
    """

    phases: list[Phase]
    kinds: Ints
    steady: int
    work: Work
    optimizer_work: Work
    trainable_params: int
    total_params: int
    managed_bytes: int
    makers: list[tuple[int, Extension | list[Made]]]
    weights: list[Weight]
    evaluation: dict[str, Extension] = field(default_factory=dict)
    offloaded_bytes: int = 0
    streamed_bytes: tuple[int, ...] = ()
    layer_work: tuple[Work, Work] = field(default_factory=lambda: (Counter(), Counter()))
    decomposed_bytes: int = 0

    @property
    def made(self) -> dict[int, Made]:
        """What made the storage of a key, for those of the steps."""
        by_key: dict[int, Made] = {}
        for first, maker in self.makers:
            by_key.update(enumerate(maker.made if isinstance(maker, Extension) else maker, first))
        return by_key

    @property
    def written_params(self) -> int:
        """Of an adapter all weights, those that stay as they are drawn too; else what is trained."""
        return sum(weight.params for weight in self.weights if weight.trained or weight.adapter)


def assemble(
    recipe: Recipe,
    weights: list[Weight],
    first: tuple[Extension, list[int]],
    rest: tuple[Extension, list[int]] | None,
    optimizer: tuple[Events, Events, list[int], int, list[Made], Work],
    loop: Loop,
    device: Device,
) -> Rehearsal:
    """Loading, then two optimizer steps, every key of its own."""
    load_kinds: list[int] = []
    workspace = device.cublas_workspace_bytes if device.cuda else 0
    phases = load_phases(recipe, weights, loop, load_kinds, workspace)
    kinds: list[Any] = [load_kinds]
    num_keys = len(load_kinds)
    has_workspace = KIND["workspaces"] in load_kinds  # each thread asks for its own, and loading's runs the forwards
    optimizer_first, optimizer_steady, optimizer_kinds, managed, optimizer_made, optimizer_work = optimizer
    makers: list[tuple[int, Extension | list[Made]]] = []
    state_from = 0
    steady = 0
    outlived: list[Events] = []
    for step in (1, 2):
        if step == 2:
            steady = len(phases)
        first_phase = len(phases)
        gradients: list[tuple[int, int]] = []
        for number, micro in enumerate((first, rest) if rest else (first,)):
            assert micro is not None
            extension, kept = micro
            offset = num_keys
            kinds.append(extension.kinds)
            num_keys += len(extension.kinds)
            makers.append((offset, extension))
            events = extension.events + np.array([offset, 0])
            begun, over = _start_of(extension, "loss_backward"), _start_of(extension, "after")
            after = events[over:]
            for name, start, end in (("forward", 0, begun), ("backward", begun, over)):
                piece, at = events[start:end], end - start
                if workspace and step == 1 and number == 0 and not (has_workspace and name == "forward"):
                    at = _first_product(extension, start, end) - start
                    piece = np.insert(piece, at, (num_keys, workspace), axis=0)
                    kinds.append([KIND["workspaces"]])
                    num_keys += 1
                marks = [(m - start + (m - start >= at), n, i) for m, n, i in extension.marks if start <= m < end]
                phases.append(Phase(name, piece, marks=marks))
            gradients += [(key + offset, -int(extension.sizes[key])) for key in kept]
            if number == 0 and rest:
                _append(phases, -1, after)
        if step == 1:
            state_from = num_keys
            kinds.append(optimizer_kinds)
            num_keys += len(optimizer_kinds)
            makers.append((state_from, optimizer_made))
        updates = optimizer_first if step == 1 else optimizer_steady
        phases.append(Phase("optimizer", updates + np.array([state_from, 0])))
        if loop.output_until == "next_forward":
            _append(phases, first_phase, *outlived)
            outlived = [after]
        else:
            _append(phases, -1, after)
        _append(phases, -1, as_events(gradients))
    return Rehearsal(
        phases=phases,
        kinds=np.concatenate([np.array(piece, dtype=np.int64) for piece in kinds]),
        steady=steady,
        work=first[0].work,
        optimizer_work=optimizer_work,
        trainable_params=sum(w.params for w in weights if w.trained),
        total_params=sum(w.params for w in weights if w.stored),
        managed_bytes=managed,
        makers=makers,
        weights=weights,
    )


def _append(phases: list[Phase], number: int, *events: Events) -> None:
    """`events` to those of a phase."""
    phases[number] = replace(phases[number], events=np.concatenate((phases[number].events, *events)))


def _first_product(extension: Extension, start: int, end: int) -> int:
    """After which of the events from start to end cuBLAS is asked for: the first product of matrices has its result.

    aten cuda/Blas.cpp takes the handle, and with it the workspace, once the result has been made; `end` without one.
    """
    key = begun = 0
    for section, stop in extension.parts:
        if stop > start and section.before_product is not None:
            if section.before_product == 0:
                return min(begun, end)
            last = key + section.before_product - 1
            (place,) = np.flatnonzero((extension.events[:, 0] == last) & (extension.events[:, 1] > 0))
            return min(int(place) + 1, end)
        key += len(section.kinds)
        begun = stop
    return end


def _start_of(extension: Extension, name: str) -> int:
    start = 0
    for section, end in extension.parts:
        if section.name == name:
            return start
        start = end
    raise ModelError(f"the step has no {name}")
