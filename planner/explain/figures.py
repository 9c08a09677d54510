"""Where does each figure of an Estimate come from? Told from the rehearsal that it was read from: parts that add up."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from autoft.planner.estimator.target import NCCL_SOURCE
from autoft.planner.kernels.dispatch import scratch as scratch_rules
from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import CPU_ALIGNMENT, LARGE_SEGMENT, MIN_BLOCK, SMALL_SEGMENT, round_up
from autoft.planner.memory.host import disk_parts, host_parts
from autoft.planner.memory.recording import SECTIONS, Recording
from autoft.planner.plan.exact import Answer
from autoft.planner.rehearsal.loading import Weight, off_device
from autoft.planner.tracing.trace import KIND, Made, Scratch
from autoft.schema import Record
from autoft.trainer.adapters import kind_of
from autoft.trainer.model.stream import places
from autoft.trainer.recipe import Recipe
from autoft.units import MIB

ALLOCATOR = "c10/cuda/CUDACachingAllocator.cpp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part(Record):
    """bytes: of the part. what: it is. source: the rule of CUDA or PyTorch behind it, None where shapes say it all."""

    bytes: int
    what: str
    source: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure(Record):
    """figure: its path in the Estimate, such as "components.weights". bytes: its value, the sum of its parts.

    where: the moment that it describes.
    """

    figure: str
    bytes: int
    where: str | None
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    """One that lives at the peak. phase, section, layer: in which it was made."""

    bytes: int
    kind: int
    made: Made
    phase: str
    section: str
    layer: int | None


def explain(recording: Recording, answer: Answer) -> tuple[Figure, ...]:
    """Every byte figure of the Estimate. recording: of the answer's rehearsal."""
    estimate = answer.estimate
    peak = recording.steady_peak()
    living = list(_living(recording, peak))
    components = recording.components(peak)
    where = recording.where(peak)
    figures = [
        Figure(
            figure="peak_allocated_bytes", bytes=estimate.peak_allocated_bytes, where=where, parts=_by_kind(components)
        )
    ]
    for name, num_bytes in components.items():
        parts = _parts(name, num_bytes, [s for s in living if s.kind == KIND.get(name)], living, answer)
        figures.append(Figure(figure=f"components.{name}", bytes=num_bytes, where=where, parts=tuple(parts)))
    figures += [_reserved(answer), _device(answer)]
    for name, num_bytes in estimate.phases.items():
        event = _peak(recording, name)
        kinds = _by_kind(recording.components(event))
        figures.append(Figure(figure=f"phases.{name}", bytes=num_bytes, where=recording.where(event), parts=kinds))
    return (*figures, *_beside(answer))


def _peak(recording: Recording, name: str) -> int:
    """The event at which the phase of that name in `Estimate.phases` is highest."""
    if name == "save":  # nothing is taken: the adapter goes to the host when a step is over
        return recording.starts[recording.end] - 1
    phases = recording.rehearsal.phases
    groups = [recording.group(phase) for phase in range(len(phases))]
    return recording.peak(
        [p for p, group in enumerate(groups) if name == (phases[p].name if group == "steady_step" else group)]
    )


def _living(recording: Recording, event: int) -> Iterator[_Storage]:
    rehearsal = recording.rehearsal
    for place in recording.living(event).tolist():
        key = int(recording.keys[place])
        yield _Storage(
            int(recording.sizes[place]),
            rehearsal.kinds[key],
            rehearsal.made.get(key, (None, None, None)),
            _of_phase(recording, place),
            *recording.section(place),
        )


def _of_phase(recording: Recording, event: int) -> str:
    phase = recording.phase_of(event)
    name, group = recording.rehearsal.phases[phase].name, recording.group(phase)
    return f"{group}, {name}" if group == "evaluation" else name


def _by_kind(components: dict[str, int]) -> tuple[Part, ...]:
    return tuple(Part(bytes=num, what=name.replace("_", " ")) for name, num in components.items() if num)


def _parts(name: str, num_bytes: int, mine: list[_Storage], living: list[_Storage], answer: Answer) -> list[Part]:
    """The parts of one component. mine: the storages of its kind."""
    if name in ("weights", "quantization_state", "adapter"):
        return _stored(name, num_bytes, answer)
    if name in ("gradients", "optimizer"):
        return _per_weight(name, mine, answer)
    if name == "workspaces":
        return _workspaces(mine)
    if name == "rounding":
        return _rounding(num_bytes, living, cuda=answer.target.device == "cuda")
    return _operations(mine, answer.estimator.device)


def _stored(name: str, num_bytes: int, answer: Answer) -> list[Part]:
    """What the model stores on the device, by dtype."""
    recipe, weights = answer.recipe, answer.rehearsal.weights
    groups: dict[str, list[tuple[int, int]]] = {}  # what -> (elements, bytes) of each tensor
    away = off_device(recipe, weights)
    for weight in weights:
        streamed = weight.name in away
        if name == "quantization_state" and weight.state:
            own = weight.state[1:] if streamed else weight.state
            groups.setdefault(_scales(recipe, streamed=streamed), []).append((0, sum(own)))
        elif name != "quantization_state" and not streamed and weight.adapter == (name == "adapter"):
            groups.setdefault(_elements(name, weight, answer), []).append((weight.params, weight.size))
    parts = [
        Part(
            bytes=sum(size for _, size in tensors),
            what=what.format(n=len(tensors), elements=f"{sum(n for n, _ in tensors):,}"),
        )
        for what, tensors in groups.items()
        if tensors
    ]
    if name == "weights":
        shared = "one of the places that streamed layers share"
        parts += [Part(bytes=place, what=shared) for place in places(answer.rehearsal.streamed_bytes)]
    nested = next((w.state for w in weights if len(w.state) > 2), None)
    if name == "quantization_state" and nested is not None:
        parts.append(Part(bytes=nested[-1], what="the map of 8-bit scales that bitsandbytes keeps for all"))
    rest = num_bytes - sum(part.bytes for part in parts)
    return [*parts, *([Part(bytes=rest, what="not told apart")] if rest else [])]


def _scales(recipe: Recipe, *, streamed: bool) -> str:
    if streamed:
        return "maps of 4-bit values, and scales of scales, for {n} tensors of streamed layers"
    if recipe.quant_type == "int8":
        return "scales of rows, for {n} tensors"
    return f"scales of blocks{' and the scales of these' if recipe.double_quant else ''}, for {{n}} tensors"


def _elements(name: str, weight: Weight, answer: Answer) -> str:
    recipe, dtype = answer.recipe, str(weight.dtype).removeprefix("torch.")
    what = f"{{elements}} parameters in 4 bits ({recipe.quant_type}), two a byte, in {{n}} tensors"
    if recipe.quant_type == "int8":
        what = "{elements} parameters in 8 bits (int8), in {n} tensors"
    if not weight.state:
        what = f"{{elements}} elements x {weight.dtype.itemsize} bytes ({dtype}) in {{n}} tensors"
    if name == "adapter":
        kind = kind_of(recipe)
        layers = sum(kind.once in w.name for w in answer.rehearsal.weights)
        where = f"on {layers} layers" if kind.on_layers else "before every row"
        what = f"{kind.size(recipe) or kind.title(recipe)} {where}: {what}"
    return what


def _per_weight(name: str, mine: list[_Storage], answer: Answer) -> list[Part]:
    """Gradients and optimizer state, by dtype, beside the number of trained weights."""
    trained = answer.rehearsal.trainable_params
    parts = []
    for dtype, storages in _grouped(mine, lambda s: s.made[2]):
        elements = sum(math.prod(s.made[1] or ()) for s in storages)
        num_bytes = sum(s.bytes for s in storages)
        what = f"{len(storages)} storages"
        if dtype is not None and elements * dtype.itemsize == num_bytes:
            what += f", {elements:,} elements x {dtype.itemsize} bytes ({str(dtype).removeprefix('torch.')})"
        if name == "gradients":
            what += f": of {trained:,} trained weights, those that the backward has reached"
        elif elements >= trained:
            what += f": {elements / trained:.3g} for each of {trained:,} trained weights"
        parts.append(Part(bytes=num_bytes, what=what))
    if name == "optimizer" and answer.rehearsal.managed_bytes:
        paged = f"{answer.rehearsal.managed_bytes:,} bytes more are paged: in managed memory, outside of the allocator"
        parts.append(Part(bytes=0, what=paged, source="bitsandbytes/optim/optimizer.py, get_state_buffer"))
    return parts


def _workspaces(mine: list[_Storage]) -> list[Part]:
    return [
        Part(
            bytes=num_bytes * len(storages),
            what=f"{len(storages)} x {num_bytes / MIB:.3f} MiB: a cuBLAS handle each for forward and backward",
            source="aten/src/ATen/cuda/CublasHandlePool.cpp",
        )
        for num_bytes, storages in _grouped(mine, lambda s: s.bytes)
    ]


def _rounding(num_bytes: int, living: list[_Storage], *, cuda: bool) -> list[Part]:
    unit = MIN_BLOCK if cuda else CPU_ALIGNMENT
    rounded = sum(round_up(s.bytes, unit) - s.bytes for s in living)
    source = f"{ALLOCATOR}, round_size" if cuda else "c10/core/alignment.h"
    parts = [Part(bytes=rounded, what=f"{len(living):,} storages in blocks of {unit} bytes", source=source)]
    if num_bytes != rounded:
        rests = "rests of blocks, up to 1 MiB each, that are too small to be split off"
        parts.append(Part(bytes=num_bytes - rounded, what=rests, source=f"{ALLOCATOR}, should_split"))
    return parts


def _operations(mine: list[_Storage], device: Device) -> list[Part]:
    """Results of operations: alike ones of several layers together."""
    rules = scratch_rules(device)
    parts = []
    for (made, phase, section), storages in _grouped(mine, lambda s: (s.made, s.phase, s.section)):
        operation, shape, dtype = made
        name, source = _named(operation, rules, scratch=shape is None)
        tensor = "inside the kernel" if shape is None else f"{list(shape)} {str(dtype).removeprefix('torch.')}"
        layers = [s.layer for s in storages if s.layer is not None]
        where = f"layer{'s' * (len(set(layers)) > 1)} {_ranges(layers)}" if layers else SECTIONS.get(section, section)
        parts.append(
            Part(
                bytes=sum(s.bytes for s in storages),
                what=f"{len(storages)} x {tensor} by {name}, {phase}" + (f" of {where}" if where else ""),
                source=source,
            )
        )
    return sorted(parts, key=lambda part: -part.bytes)


def _named(operation: Any, rules: dict[Any, Scratch], *, scratch: bool) -> tuple[str, str | None]:
    """(what the operation or kernel is called, the rule of the device that it follows)."""
    if isinstance(operation, tuple):
        return operation
    rule: Any = rules[operation].sizes if scratch else None
    while isinstance(rule, functools.partial):
        rule = rule.func
    return str(operation).removesuffix(".default"), rule and rule.__doc__.splitlines()[0].rstrip(".")


def _reserved(answer: Answer) -> Figure:
    estimate = answer.estimate
    parts = [Part(bytes=estimate.peak_allocated_bytes, what="allocated at the peak")]
    if answer.target.device == "cuda":
        pages = f"{LARGE_SEGMENT // MIB} MiB for large blocks and {SMALL_SEGMENT // MIB} MiB for small ones"
        parts.append(
            Part(
                bytes=estimate.peak_reserved_bytes - estimate.peak_allocated_bytes,
                what=f"free then: gaps between blocks, and the ends of segments, which come in multiples of {pages}",
                source=f"{ALLOCATOR}, get_allocation_size and try_allocate_expandable_block",
            )
        )
    return Figure(
        figure="peak_reserved_bytes", bytes=estimate.peak_reserved_bytes, where="steady step", parts=tuple(parts)
    )


def _device(answer: Answer) -> Figure:
    estimate, target = answer.estimate, answer.target
    context, num_gpus = target.device_bytes(0), estimate.num_gpus
    beside = target.device_bytes(0, num_gpus)
    what = "reserved, the most in the whole run"
    if target.gpu is None and num_gpus > 1:
        what += f", of {num_gpus} replicas"
    parts = [Part(bytes=estimate.device_bytes - beside, what=what)]
    if context:
        assumed = [assumption.text for assumption in target.assumptions if assumption.kind == "context"]
        basis = assumed[0] if assumed else "measured on this kind of card"
        parts.append(Part(bytes=context, what="CUDA context", source=basis))
    if beside > context:
        parts.append(Part(bytes=beside - context, what="NCCL's buffers, an assumption", source=NCCL_SOURCE))
    return Figure(figure="device_bytes", bytes=estimate.device_bytes, where="whole run", parts=tuple(parts))


def _beside(answer: Answer) -> Iterator[Figure]:
    """RAM of the host and room on the disk."""
    estimate, params = answer.estimate, answer.estimator.shape.total_params
    here = answer.target.on_each_host(estimate.num_gpus)
    for field, phases, parts in (
        ("host_bytes", estimate.host_bytes, host_parts(answer.rehearsal, params, here)),
        ("disk_bytes", estimate.disk_bytes, disk_parts(answer.rehearsal, params)),
    ):
        for phase, num_bytes in phases.items():
            by = tuple(Part(bytes=part, what=what) for what, part in parts[phase].items() if part)
            yield Figure(figure=f"{field}.{phase}", bytes=num_bytes, where=None, parts=by)


def _grouped(storages: Iterable[_Storage], key: Any) -> list[tuple[Any, list[_Storage]]]:
    groups: dict[Any, list[_Storage]] = {}
    for storage in storages:
        groups.setdefault(key(storage), []).append(storage)
    return list(groups.items())


def _ranges(numbers: list[int]) -> str:
    """0-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
