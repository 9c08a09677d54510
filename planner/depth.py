"""Layers are alike: which few of a model's layers must be rehearsed, and how their events stand for all of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from autoft.planner.trace import Event, Section

# A layer's piece of the step depends on the layers around it: the one before drops its storages late, the first one's
# input needs no gradient, the last one feeds the head. Two neighbours on either side are looked at.
NEIGHBOURS = 2


@dataclass(frozen=True, slots=True)
class Depth:
    """path: of the list of layers in the model. layers: how many there are. rehearsed: how many of them, from the first
    on, are run. stands_for: for each layer of the model the rehearsed one that behaves like it."""

    path: str
    layers: int
    rehearsed: int
    stands_for: tuple[int, ...]


def depth_of(base: Any, config: Any) -> Depth | None:
    """The Depth of `base`, built in full without storage; None when all of it must be rehearsed."""
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    import torch

    lists = [
        (path, module)
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if not lists:
        return None
    path, layers = min(lists, key=lambda item: item[0].count("."))
    types = getattr(config.get_text_config(), "layer_types", None) or [None] * len(layers)
    numbers: dict[Any, int] = {}
    classes = [
        numbers.setdefault((_signature(layer), kind), len(numbers)) for layer, kind in zip(layers, types, strict=True)
    ]
    return _shortest(path, classes)


def _shortest(path: str, classes: list[int]) -> Depth | None:
    total = len(classes)
    wanted = _contexts(classes)
    for rehearsed in range(2 * NEIGHBOURS + 1, total):
        found: dict[tuple[int, ...], int] = {}
        for number, context in enumerate(_contexts(classes[:rehearsed])):
            found[context] = number  # the later the better: further from the first layer
        if all(context in found for context in wanted):
            return Depth(path, total, rehearsed, tuple(found[context] for context in wanted))
    return None


def _contexts(classes: list[int]) -> list[tuple[int, ...]]:
    edge = [-1] * NEIGHBOURS
    padded = [*edge, *classes, *edge]
    return [tuple(padded[i : i + 2 * NEIGHBOURS + 1]) for i in range(len(classes))]


def _signature(layer: Any) -> tuple[Any, ...]:
    """All in which two layers can differ in memory: modules, parameters, plain settings; but not their number."""
    found = []
    for name, module in layer.named_modules():
        settings = tuple(
            sorted(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, (bool, int, str)) and key not in ("layer_idx", "layer_id", "layer_number", "idx")
            )
        )
        tensors = tuple((key, tuple(p.shape), p.dtype) for key, p in module._parameters.items() if p is not None)
        found.append((name, type(module).__qualname__, repr(settings), tensors))
    return tuple(found)


def shortened(config: Any, layers: int) -> Any:
    """`config` with only its first `layers` layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    total = text.num_hidden_layers
    lists = {k: v for k, v in vars(text).items() if isinstance(v, (list, tuple)) and len(v) == total}
    for key, value in lists.items():
        text.__dict__[key] = value[:layers]
    text.num_hidden_layers = layers
    return config


class Extension:
    """The rehearsed sections told again for the full depth."""

    def __init__(self, sections: list[Section], depth: Depth | None, layers: int) -> None:
        """layers: of the model that was rehearsed."""
        self.events: list[Event] = []
        self.kinds: list[int] = []
        self.parts: list[tuple[Section, int]] = []  # (rehearsed section, end of its events)
        self._depth = depth
        self._total = depth.layers if depth else layers
        self._rehearsed = layers
        self._origin: dict[int, tuple[int, int]] = {}  # rehearsed key -> (its section, its place there)
        for number, section in enumerate(sections):
            for place in range(len(section.kinds)):
                self._origin[section.first_key + place] = (number, place)
        self._sections = sections
        self._layer_section = {(s.name, s.layer): n for n, s in enumerate(sections) if s.layer is not None}
        self._keys: dict[tuple[int, int | None, int], int] = {}  # (section, layer of the full model, place) -> key
        self._live: set[int] = set()
        self._tell()

    def _tell(self) -> None:
        number = 0
        while number < len(self._sections):
            section = self._sections[number]
            if section.layer is None:
                self._play(number, None)
                number += 1
                continue
            name, run = section.name, 1
            while (following := number + run) < len(self._sections) and self._sections[following].name == name:
                run += 1
            descending = run > 1 and self._sections[number + 1].layer < section.layer  # type: ignore[operator]
            for layer in reversed(range(self._total)) if descending else range(self._total):
                self._play(self._layer_section[name, self._stand_in(layer)], layer)
            number += run

    def _stand_in(self, layer: int) -> int:
        return self._depth.stands_for[layer] if self._depth else layer

    def _play(self, number: int, layer: int | None) -> None:
        section = self._sections[number]
        for key, size in section.events:
            if size > 0:
                self._make(number, layer, key - section.first_key, size)
            else:
                self._drop(section, layer, *self._origin[key], size)
        self.parts.append((section, len(self.events)))

    def _make(self, number: int, layer: int | None, place: int, size: int) -> None:
        key = len(self.kinds)
        self.kinds.append(self._sections[number].kinds[place])
        self._keys[number, layer, place] = key
        self._live.add(key)
        self.events.append((key, size))

    def _drop(self, section: Section, layer: int | None, number: int, place: int, size: int) -> None:
        origin = self._sections[number].layer
        if origin is None:
            self._end((number, None, place), size)
        elif layer is not None:
            assert section.layer is not None
            there = layer + origin - section.layer
            stand_in = self._layer_section[self._sections[number].name, self._stand_in(there)]
            self._end((stand_in, there, place), size)
        else:  # between or after the layers: what all layers like this one still hold
            for full in range(self._total):
                if self._stand_in(full) == origin:
                    self._end((number, full, place), size, certain=self._total == self._rehearsed)

    def _end(self, where: tuple[int, int | None, int], size: int, certain: bool = True) -> None:
        key = self._keys.get(where)
        if key is None or key not in self._live:
            if certain:
                raise MismatchError(f"{where} is not there to be dropped")
            return
        self._live.discard(key)
        self.events.append((key, size))

    def full_keys(self, key: int) -> list[tuple[int | None, int]]:
        """(layer, key) of every storage of the full model for which the rehearsed one stands."""
        number, place = self._origin[key]
        layer = self._sections[number].layer
        if layer is None:
            return [(None, self._keys[number, None, place])]
        return [(i, self._keys[number, i, place]) for i in range(self._total) if self._stand_in(i) == layer]

    @property
    def live(self) -> set[int]:
        """Keys that nothing has dropped."""
        return self._live


class MismatchError(Exception):
    """The pieces do not join: the model must be rehearsed in full."""
