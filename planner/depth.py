"""Layers are alike: which few of a model's layers must be rehearsed, and how their events stand for all of them."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

from autoft.planner.trace import Event, Made, Section
from autoft.planner.work import Work

# A layer's piece of the step depends on the layers next to it, some of whose storages it drops. The first layer is like
# no other, since its input needs no gradient, and so is the second, which drops what the first one made; the last one
# feeds the head.
FIRST = 2
FEWEST = 4  # layers worth rehearsing: first, second, one in between, last


@dataclass(frozen=True, slots=True)
class Depth:
    """path: of the list of layers in the model. layers: how many there are. rehearsed: how many of them, from the first
    on, are run. stands_for: for each layer of the model the rehearsed one that behaves like it."""

    path: str
    layers: int
    rehearsed: int
    stands_for: tuple[int, ...]

    @property
    def full(self) -> Depth:
        """All layers, none standing for another."""
        return Depth(self.path, self.layers, self.layers, tuple(range(self.layers)))


def depth_of(base: Any, config: Any) -> Depth | None:
    """The Depth of `base`, built in full without storage; None when it has no list of its layers."""
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


def _shortest(path: str, classes: list[int]) -> Depth:
    total = len(classes)
    wanted = _contexts(classes)
    for rehearsed in range(FEWEST, total):
        found: dict[tuple[int, ...], int] = {}
        for number, context in enumerate(_contexts(classes[:rehearsed])):
            found.setdefault(context, number)
        if all(context in found for context in wanted):
            return Depth(path, total, rehearsed, tuple(found[context] for context in wanted))
    return Depth(path, total, total, tuple(range(total)))


def _contexts(classes: list[int]) -> list[tuple[int, ...]]:
    """Of each layer: its number up to FIRST, and the classes of the one before, of itself and of the one after."""
    padded = [-1, *classes, -1]
    return [(min(i, FIRST), *padded[i : i + 3]) for i in range(len(classes))]


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


Where = tuple[int, int | None, int]  # section, layer of the full model, place in the section


class Extension:
    """The rehearsed sections told again for the full depth."""

    def __init__(self, sections: list[Section], depth: Depth | None) -> None:
        """Raises: MismatchError when the pieces do not join."""
        self.events: list[Event] = []
        self.kinds: list[int] = []
        self.made: list[Made] = []  # as kinds
        self.marks: list[tuple[int, str, int | None]] = []  # (first event, section, layer of the full model)
        self.parts: list[tuple[Section, int]] = []  # (rehearsed section, end of its events)
        self._stands_for = depth.stands_for if depth else ()
        self._rehearsed = depth.rehearsed if depth else 0
        self._standing: dict[int, list[int]] = {}  # rehearsed layer -> those of the full model, in order
        for layer, stand_in in enumerate(self._stands_for):
            self._standing.setdefault(stand_in, []).append(layer)
        self._origin: dict[int, tuple[int, int]] = {}  # rehearsed key -> (its section, its place there)
        for number, section in enumerate(sections):
            for place in range(len(section.kinds)):
                self._origin[section.first_key + place] = (number, place)
        self._sections = sections
        self._layer_section = {(s.name, s.layer): n for n, s in enumerate(sections) if s.layer is not None}
        self._keys: dict[Where, int] = {}
        self._live: dict[int, int] = {}  # key -> bytes
        self._tell()
        self._check()

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
            layers = range(len(self._stands_for))
            for layer in reversed(layers) if descending else layers:
                standing = self._standing[self._stands_for[layer]]
                last = layer == standing[0 if descending else -1]
                self._play(self._section_of(name, self._stands_for[layer]), layer, last)
            number += run

    def _play(self, number: int, layer: int | None, last: bool = True) -> None:
        """last: no later layer has this section for its own."""
        section = self._sections[number]
        self.marks.append((len(self.events), section.name, layer))
        for key, size in section.events:
            if size > 0:
                self._make(number, layer, key - section.first_key, size)
            else:
                self._drop(section, layer, last, *self._origin[key], size)
        self.parts.append((section, len(self.events)))

    def _make(self, number: int, layer: int | None, place: int, size: int) -> None:
        key = len(self.kinds)
        self.kinds.append(self._sections[number].kinds[place])
        self.made.append(self._sections[number].made[place])
        self._keys[number, layer, place] = key
        self._live[key] = size
        self.events.append((key, size))

    def _drop(self, section: Section, layer: int | None, last: bool, number: int, place: int, size: int) -> None:
        origin = self._sections[number].layer
        if origin is None:
            if last:  # what all layers look at, such as a mask, goes with the last that does
                self._end((number, None, place), size)
        elif layer is None:  # between or after the layers: what those like it, or as far from the last, still hold
            like = set(self._standing.get(origin, []))
            if origin >= self._rehearsed - 2:
                like.add(len(self._stands_for) - self._rehearsed + origin)
            for full in sorted(like):
                where = self._at(number, full, place)
                if self._keys.get(where) in self._live:
                    self._end(where, size)
        else:
            assert section.layer is not None
            there = layer + origin - section.layer
            if layer != section.layer and (abs(there - layer) > 1 or not 0 <= there < len(self._stands_for)):
                raise MismatchError(f"layer {section.layer} drops what layer {origin} made")
            self._end(self._at(number, there, place), size)

    def _at(self, number: int, layer: int, place: int) -> Where:
        """Where in the full model's `layer` the storage is that has this place in a rehearsed layer's section."""
        return (self._section_of(self._sections[number].name, self._stands_for[layer]), layer, place)

    def _section_of(self, name: str, layer: int) -> int:
        number = self._layer_section.get((name, layer))
        if number is None:
            raise MismatchError(f"layer {layer} has no {name}")
        return number

    def _end(self, where: Where, size: int) -> None:
        key = self._keys.get(where)
        if key is None or key not in self._live:
            raise MismatchError(f"{where} is not there to be dropped")
        if self._live.pop(key) != -size:
            raise MismatchError(f"{where} is of another size than what is dropped")
        self.events.append((key, size))

    def _check(self) -> None:
        """What lives at the end is what lives at the end of the rehearsed step."""
        dropped = {key for section in self._sections for key, size in section.events if size < 0}
        living = [key for key in self._origin if key not in dropped]
        if {full for key in living for _, full in self.full_keys(key)} != self._live.keys():
            raise MismatchError("some storages are not dropped")

    def full_keys(self, key: int) -> list[tuple[int | None, int]]:
        """(layer, key) of every storage of the full model for which the rehearsed one stands."""
        number, place = self._origin[key]
        layer = self._sections[number].layer
        if layer is None:
            return [(None, self._keys[number, None, place])]
        return [(i, self._keys[number, i, place]) for i in self._standing.get(layer, [])]

    @property
    def work(self) -> Work:
        """Of the full depth."""
        total: Work = Counter()
        times = Counter(id(section) for section, _ in self.parts)
        for section in self._sections:
            for kernel, launches in section.work.items():
                total[kernel] += launches * times[id(section)]
        return total


class MismatchError(Exception):
    """The pieces do not join: the model must be rehearsed in full."""
