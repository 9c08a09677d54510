"""Weights that a checkpoint holds in other pieces, and what putting them together takes while a model is loaded.

transformers reads, stacks and joins them on the device: a layer's experts lie there twice for a moment, in 16 bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from autoft.planner.tracing.trace import Event, Section, Trace
from autoft.trainer.compat.transformers import CONVERSIONS, LOAD, LOAD_OPTIONS, REVERT, SET_WEIGHT
from autoft.trainer.model.build import build_base
from autoft.trainer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Assembly:
    """How weights come from the checkpoint. It makes one, or several from one piece.

    first: name there of the tensor that is read first; the natural order of these names is that of loading.
    events: of making them; keys count from 0. results: by name of the weight in the model, the key of its storage.
    """

    first: str
    events: tuple[Event, ...]
    results: dict[str, int]


def assemblies(config: Any, recipe: Recipe) -> dict[str, Assembly]:
    """By name of a weight in the base: how transformers makes it from the checkpoint that its own saving would write.

    Its loading runs on tensors without storage, one weight after another, as it does where weights are quantized and
    where trainer/model/build.py loads. Empty where a checkpoint holds the model's own tensors under their own names.
    """
    base = build_base(Recipe(base_dtype=recipe.weights_dtype, attention=recipe.attention), config)
    mapping_of, load = CONVERSIONS.fetch(), LOAD.fetch()
    conversions = mapping_of(base, add_legacy=False)
    if not conversions or any(getattr(conversion, "force_cpu", False) for conversion in conversions):
        return {}
    own = {name: tensor for name, tensor in base.state_dict().items() if name not in base.all_tied_weights_keys}
    log = _Log()
    stored = {name: _Stored(name, tensor, log) for name, tensor in REVERT.fetch()(base, own).items()}
    options = LOAD_OPTIONS.fetch()(device_map={"": "meta"}, dtype=base.dtype, weight_mapping=mapping_of(base))
    one_after_another = mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1")
    with one_after_another, SET_WEIGHT.replaced_by(log.set), log.trace:
        load(base, stored, options)
    return log.assemblies()


class _Stored:
    """A tensor of the checkpoint, which takes memory once it is read."""

    def __init__(self, name: str, tensor: torch.Tensor, log: _Log) -> None:
        self.name, self.shape, self.dtype, self.log = name, tensor.shape, tensor.dtype, log

    def __getitem__(self, _: Any) -> torch.Tensor:
        self.log.read(self.name)
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class _Log:
    """What loading reads, makes and sets, in order."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.first = ""
        self.made: list[tuple[str, dict[str, int]]] = []  # first read, and what was then set
        self.kept: list[torch.Tensor] = []

    def read(self, name: str) -> None:
        if not self.first:
            self.first = name
            self.trace.begin(name)

    def set(self, _model: Any, name: str, tensor: torch.Tensor, *_: Any) -> None:
        if self.first:
            self.made.append((self.first, {}))
            self.first = ""
        self.made[-1][1][name] = self.trace.follow(tensor)
        self.kept.append(tensor)

    def assemblies(self) -> dict[str, Assembly]:
        """By weight."""
        events: dict[str, list[Event]] = {}
        section_of: dict[int, Section] = {}
        for section in self.trace.sections:
            for key, size in section.events:
                if size > 0:
                    section_of[key] = section
                maker = section_of[key]  # what is dropped while the next is read belongs to what it was made for
                events.setdefault(maker.name, []).append((key - maker.first_key, size))
        by_name: dict[str, Assembly] = {}
        firsts = {section.name: section.first_key for section in self.trace.sections}
        for first, results in self.made:
            own = {name: key - firsts[first] for name, key in results.items()}
            by_name |= dict.fromkeys(own, Assembly(first, tuple(events[first]), own))
        return by_name
