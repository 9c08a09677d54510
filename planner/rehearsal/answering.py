"""The rehearsal of an answer: base and adapters are loaded, and a prompt that fills the context is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.layers import Depth, as_events
from autoft.planner.rehearsal.loading import Weight, load_phases, streamed_bytes
from autoft.planner.rehearsal.loop import OURS, Phase
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import Kept, rehearse_prompt
from autoft.planner.tracing.trace import KIND, Event
from autoft.trainer.adapters import kind_of
from autoft.trainer.recipe import Recipe


def answering(recipe: Recipe) -> Recipe:
    """The same base and adapter, without what only training asks for."""
    defaults = Recipe()
    return replace(
        recipe,
        gradient_checkpointing=False,
        checkpoint_every=1,
        offload_checkpoints=False,
        packing=False,
        autocast=False,
        objective=defaults.objective,
        optimizer=defaults.optimizer,
        loss=defaults.loss,
        freeze_a=False,
        lora_plus_ratio=1.0,
        dropout=0.0,
    )


def rehearse_answer(
    recipe: Recipe, config: Any, device: Device, *, depth: Depth | None, adapters: int, kept: Kept
) -> Rehearsal:
    """The events of loading a base with `adapters` adapters, and of reading `micro_batch` prompts of `seq_len` tokens.

    Writing takes less: of each layer it holds keys and values twice, one token's activations, and no more.
    recipe: as `answering` gives it. The rest as `rehearse` has it.
    Raises: ModelError where the model's cache cannot be rehearsed.
    """
    saved = kind_of(recipe).saved(recipe)
    resident = replace(saved, streamed_layers=0)
    weights, prompt = rehearse_prompt(resident, config, device, depth=depth, adapter=adapters > 0, kept=kept)
    base, adapter = ([w for w in weights if w.adapter == own] for own in (False, True))
    loaded: list[int] = []
    workspace = device.cublas_workspace_bytes if device.cuda else 0
    phases = load_phases(saved, [*base, *(adapter if adapters else [])], OURS, loaded, workspace)
    for _ in range(adapters - 1):
        phases.append(_one_more(adapter, loaded))
    cublas: list[Event] = []  # by the first product, unless loading has multiplied before
    if workspace and KIND["workspaces"] not in loaded:
        cublas = [(len(loaded), workspace)]
        loaded.append(KIND["workspaces"])
    read = prompt.events + np.array([len(loaded), 0])
    return Rehearsal(
        phases=[*phases, Phase("prompt", np.concatenate((as_events(cublas), read)))],
        kinds=np.concatenate((np.array(loaded, dtype=np.int64), prompt.kinds)),
        steady=len(phases),
        work=prompt.work,
        optimizer_work=Counter(),
        trainable_params=0,
        total_params=sum(w.params for w in base if w.stored) + adapters * sum(w.params for w in adapter),
        managed_bytes=0,
        makers=[],
        weights=weights,
        streamed_bytes=streamed_bytes(saved, weights),
    )


def _one_more(adapter: list[Weight], kinds: list[int]) -> Phase:
    """A further adapter comes to the device. Adds to `kinds`."""
    events: list[Event] = []
    for weight in adapter:
        events.append((len(kinds), weight.size))
        kinds.append(KIND["adapter"])
    return Phase("load", as_events(events), empty_cache=True)
