"""Layers are alike: which few of a model's layers must be rehearsed, and how their events stand for all of them."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoft.planner.tracing.trace import Event, Made, Section
from autoft.planner.tracing.work import Work
from autoft.trainer.model.layers import decoder_layers

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Events = NDArray[np.int64]  # (N, 2): key, and +bytes where its storage is made or -bytes where it is dropped

# A layer's piece of the step depends on the layers next to it, some of whose storages it drops. The first layer is like
# no other, since its input needs no gradient, and so is the second, which drops what the first one made; the last one
# feeds the head.
FIRST = 2
FEWEST = 4  # layers worth rehearsing: first, second, one in between, last


@dataclass(frozen=True, slots=True)
class Depth:
    """path: of the list of layers in the model. layers: how many there are. rehearsed: how many of them, from the first
    on, are run. stands_for: for each layer of the model the rehearsed one that behaves like it. classes: of each layer
    of the model a number, the same for those that are built alike."""

    path: str
    layers: int
    rehearsed: int
    stands_for: tuple[int, ...]
    classes: tuple[int, ...]

    @property
    def full(self) -> Depth:
        """All layers, none standing for another."""
        return Depth(self.path, self.layers, self.layers, tuple(range(self.layers)), self.classes)

    def alternating(self, every: int) -> Depth:
        """The same where every `every`-th layer, from the first on, is treated unlike the others."""
        return _shortest(self.path, [2 * one + (layer % every == 0) for layer, one in enumerate(self.classes)])


def depth_of(base: Any, config: Any) -> Depth | None:
    """The Depth of `base`, built in full without storage; None when it has no list of its layers."""
    whole = decoder_layers(base)
    if whole is None:
        return None
    path, layers = whole
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
        first_of: dict[tuple[int, ...], int] = {}
        for number, context in enumerate(_contexts(classes[:rehearsed])):
            first_of.setdefault(context, number)
        if all(context in first_of for context in wanted):
            return Depth(path, total, rehearsed, tuple(first_of[context] for context in wanted), tuple(classes))
    return Depth(path, total, total, tuple(range(total)), tuple(classes))


def _contexts(classes: list[int]) -> list[tuple[int, ...]]:
    """Of each layer: its number up to FIRST, and the classes of the one before, of itself and of the one after."""
    padded = [-1, *classes, -1]
    return [(min(i, FIRST), *padded[i : i + 3]) for i in range(len(classes))]


def _signature(layer: Any) -> tuple[Any, ...]:
    """All in which two layers can differ in memory: modules, parameters, plain settings; but not their number."""
    modules = []
    for name, module in layer.named_modules():
        settings = tuple(
            sorted(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, (bool, int, str)) and key not in ("layer_idx", "layer_id", "layer_number", "idx")
            )
        )
        tensors = tuple((key, tuple(p.shape), p.dtype) for key, p in module._parameters.items() if p is not None)
        modules.append((name, type(module).__qualname__, repr(settings), tensors))
    return tuple(modules)


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


def as_events(events: list[Event]) -> Events:
    return np.array(events, dtype=np.int64).reshape(-1, 2)


def pairs(events: Events) -> Iterator[tuple[int, int]]:
    """(key, size) of each event, in Python's own integers."""
    return zip(events[:, 0].tolist(), events[:, 1].tolist(), strict=True)


class Extension:
    """The rehearsed sections told again for the full depth.

    events: (N, 2), as the sections' own with the full model's keys. kinds, sizes: of each key.
    parts: (rehearsed section, end of its events). marks: (first event, section, layer of the full model).
    """

    def __init__(self, sections: list[Section], depth: Depth | None) -> None:
        """Raises: MismatchError when the pieces do not join."""
        self.parts: list[tuple[Section, int]] = []
        self.marks: list[tuple[int, str, int | None]] = []
        self._stands_for = depth.stands_for if depth else ()
        self._rehearsed = depth.rehearsed if depth else 0
        self._standing: dict[int, list[int]] = {}  # rehearsed layer -> those of the full model, in order
        for full, stand_in in enumerate(self._stands_for):
            self._standing.setdefault(stand_in, []).append(full)
        self._sections = sections
        self._pieces = _pieces(sections)
        self._layer_section = {(s.name, s.layer): n for n, s in enumerate(sections) if s.layer is not None}
        order = self._order()
        self._first: dict[tuple[int, int | None], int] = {}  # (section, layer) -> the first key that it makes
        self.sizes: Ints = np.zeros(sum(len(sections[number].kinds) for number, _, _ in order), dtype=np.int64)
        self._living = np.zeros(len(self.sizes), dtype=bool)
        self._keys = 0
        events: list[Events] = []
        begun = 0
        for number, layer, last in order:
            events.append(self._play(number, layer, last))
            self.marks.append((begun, sections[number].name, layer))
            begun += len(events[-1])
            self.parts.append((sections[number], begun))
        self.events: Events = np.concatenate(events)
        self.kinds: Ints = np.concatenate([np.array(sections[n].kinds, dtype=np.int64) for n, _, _ in order])
        self._check()

    def _order(self) -> list[tuple[int, int | None, bool]]:
        """(section, layer of the full model, whether no later layer has the section for its own), one after another."""
        order: list[tuple[int, int | None, bool]] = []
        layers = range(len(self._stands_for))
        number = 0
        while number < len(self._sections):
            section = self._sections[number]
            if section.layer is None:
                order.append((number, None, True))
                number += 1
                continue
            name, run = section.name, 1
            while (following := number + run) < len(self._sections) and self._sections[following].name == name:
                run += 1
            descending = run > 1 and self._sections[number + 1].layer < section.layer  # type: ignore[operator]
            for layer in reversed(layers) if descending else layers:
                standing = self._standing[self._stands_for[layer]]
                last = layer == standing[0 if descending else -1]
                order.append((self._section_of(name, self._stands_for[layer]), layer, last))
            number += run
        return order

    def _play(self, number: int, layer: int | None, last: bool) -> Events:
        """The events of a section for a layer of the full model."""
        piece, section = self._pieces[number], self._sections[number]
        first = self._first[number, layer] = self._keys
        self._keys += len(section.kinds)
        self.sizes[first : self._keys] = piece.sizes[piece.makes]
        self._living[first : self._keys] = True
        columns_of = [(np.flatnonzero(piece.makes), np.arange(first, self._keys))]  # events, and the key of each
        shared: list[tuple[int, int, int]] = []  # (event, origin, place) of what may go for more layers than one
        for origin, (events, places) in piece.drops.items():
            origin_layer = self._sections[origin].layer
            if origin_layer is None:
                if not last:  # what all layers look at, such as a mask, goes with the last that does
                    continue
                keys = self._first[origin, None] + places
            elif section.layer is None or layer is None:
                shared += [(int(event), origin, int(place)) for event, place in zip(events, places, strict=True)]
                continue
            else:
                there = layer + origin_layer - section.layer
                if layer != section.layer and (abs(there - layer) > 1 or not 0 <= there < len(self._stands_for)):
                    raise MismatchError(f"layer {section.layer} drops what layer {origin_layer} made")
                keys = self._keys_of(origin, there, places)
            self._release(keys, piece.sizes[events])
            columns_of.append((events, keys))
        for event, origin, place in sorted(shared):
            keys = self._still_held(origin, place)
            self._release(keys, piece.sizes[event])
            columns_of.append((np.full(len(keys), event), keys))
        which, keys = (np.concatenate(columns) for columns in zip(*columns_of, strict=True))
        order = np.argsort(which, kind="stable")
        return np.stack((keys[order], piece.sizes[which[order]]), axis=1)

    def _still_held(self, origin: int, place: int) -> Ints:
        """Between or after the layers: what those like it, or as far from the last, still hold."""
        layer = self._sections[origin].layer
        assert layer is not None
        like = set(self._standing.get(layer, []))
        if layer >= self._rehearsed - 2:
            like.add(len(self._stands_for) - self._rehearsed + layer)
        keys = [int(self._keys_of(origin, full, np.array([place]))[0]) for full in sorted(like)]
        return np.array([key for key in keys if self._living[key]], dtype=np.int64)

    def _keys_of(self, origin: int, layer: int, places: Ints) -> Ints:
        """What the full model's `layer` has made at these places of a rehearsed layer's section."""
        number = self._section_of(self._sections[origin].name, self._stands_for[layer])
        first = self._first.get((number, layer))
        if first is None or places.max() >= len(self._sections[number].kinds):
            raise MismatchError(f"layer {layer} has not made what is dropped")
        keys: Ints = first + places
        return keys

    def _section_of(self, name: str, layer: int) -> int:
        number = self._layer_section.get((name, layer))
        if number is None:
            raise MismatchError(f"layer {layer} has no {name}")
        return number

    def _release(self, keys: Ints, sizes: Any) -> None:
        """Drop them, -sizes bytes each."""
        if not self._living[keys].all():
            raise MismatchError("something is not there to be dropped")
        if (self.sizes[keys] != -sizes).any():
            raise MismatchError("something is of another size than what is dropped")
        self._living[keys] = False

    def _check(self) -> None:
        """What lives at the end is what lives at the end of the rehearsed step."""
        dropped = {key for section in self._sections for key, size in section.events if size < 0}
        living = [s.first_key + place for s in self._sections for place in range(len(s.kinds))]
        expected = {full for key in living if key not in dropped for _, full in self.full_keys(key)}
        if expected != set(np.flatnonzero(self._living).tolist()):
            raise MismatchError("some storages are not dropped")

    def full_keys(self, key: int) -> list[tuple[int | None, int]]:
        """(layer, key) of every storage of the full model for which the rehearsed one stands."""
        number = bisect_right(self._sections, key, key=lambda section: section.first_key) - 1
        section = self._sections[number]
        place = key - section.first_key
        if section.layer is None:
            return [(None, self._first[number, None] + place)]
        return [(layer, self._first[number, layer] + place) for layer in self._standing.get(section.layer, [])]

    @property
    def made(self) -> list[Made]:
        """What made each key's storage."""
        return [made for section, _ in self.parts for made in section.made]

    @property
    def work(self) -> Work:
        """Of the full depth."""
        return self._work_in(self._sections)

    def work_of(self, name: str) -> Work:
        """Of the sections of that name, one a layer."""
        return self._work_in(section for section in self._sections if section.name == name)

    def _work_in(self, sections: Iterable[Section]) -> Work:
        total: Work = Counter()
        times = Counter(id(section) for section, _ in self.parts)
        for section in sections:
            for kernel, launches in section.work.items():
                total[kernel] += launches * times[id(section)]
        return total


@dataclass(frozen=True, slots=True)
class _Piece:
    """A section's events as arrays. sizes: of each event. makes: which of them make a storage.

    drops: by the section that made them: (events, places there).
    """

    sizes: Ints
    makes: Bools
    drops: dict[int, tuple[Ints, Ints]]


def _pieces(sections: list[Section]) -> list[_Piece]:
    starts = np.array([section.first_key for section in sections])
    pieces = []
    for section in sections:
        events: Events = np.array(section.events, dtype=np.int64).reshape(-1, 2)
        keys, sizes = events[:, 0], events[:, 1]
        makes = sizes > 0
        dropped = np.flatnonzero(~makes)
        # sections that make nothing begin with the same key as the next: the last of these made it
        origins = np.searchsorted(starts, keys[dropped], side="right") - 1
        drops = {
            int(origin): (dropped[origins == origin], keys[dropped[origins == origin]] - starts[origin])
            for origin in np.unique(origins)
        }
        pieces.append(_Piece(sizes, makes, drops))
    return pieces


class MismatchError(Exception):
    """The pieces do not join: the model must be rehearsed in full."""
