"""The rehearsal: the trainer's own step on tensors without storage, every allocation of it in order."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers.masking_utils

from autoft.errors import ModelError
from autoft.planner.depth import Depth, Extension, MismatchError, depth_of, shortened
from autoft.planner.kernels import CUDA_TRANSIENTS, Backend, Device, Kernels
from autoft.planner.trace import KIND, Event, Section, Trace
from autoft.trainer.build import build_base, build_model
from autoft.trainer.loss import compute_loss
from autoft.trainer.optim import build_optimizer
from autoft.trainer.recipe import Optimizer, Recipe

CLIP_NORM = 1.0  # any norm: what is clipped does not change what is allocated
PAGED_ELEMENTS = 1e5  # bitsandbytes.optim.optimizer.get_state_buffer: smaller states stay on the device


@dataclass(frozen=True, slots=True)
class Loop:
    """How a step is run around the recipe.

    clip: gradients are clipped by their norm. warm_up: loading begins with one block as large as the model
    (transformers' caching_allocator_warmup). threads: that read weights ahead of those that are quantized.
    empty_cache: what loading leaves free is given back. expandable_segments: of PyTorch's allocator.
    mask: the batch carries an attention mask and labels of its own. keeps_output: the model's output, logits and all,
    lives until the optimizer has stepped, as `out = model(...); out.loss.backward()` makes it.
    """

    clip: bool = True
    warm_up: bool = True
    threads: int = 1
    empty_cache: bool = True
    expandable_segments: bool = True
    mask: bool = True
    keeps_output: bool = False


OURS = Loop()
# Hugging Face's own loop, as its documentation writes it. threads: GLOBAL_WORKERS of transformers/core_model_loading.py
PLAIN = Loop(
    clip=False,
    warm_up=False,
    threads=4,
    empty_cache=False,
    expandable_segments=False,
    mask=False,
    keeps_output=True,
)


@dataclass(frozen=True, slots=True)
class Phase:
    """Events of one phase. empty_cache: the allocator gives back what is free when it ends."""

    name: str
    events: list[Event]
    empty_cache: bool = False


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """phases: load, then first steps, then one steady step, in order. kinds: of every key.

    steady: name of the first phase of the steady step. flops, moved_bytes, kernels: of one micro-batch.
    managed_bytes: of paged optimizer state, outside the device's allocator.
    """

    phases: list[Phase]
    kinds: list[int]
    steady: int
    flops: float
    moved_bytes: float
    kernels: int
    trainable_params: int
    total_params: int
    managed_bytes: int


@dataclass(frozen=True, slots=True)
class _Weight:
    """One stored tensor of the model. sizes: of it and its quantization state, in the order in which they are made.

    passing: bytes of the 16-bit tensor it is packed from, or that k-bit preparation makes it from; 0 for none.
    """

    name: str
    layer: int | None
    sizes: list[tuple[int, int]]  # (bytes, kind)
    passing: int
    adapter: bool
    params: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def rehearse(
    recipe: Recipe,
    config: Any,
    device: Device,
    *,
    depth: Depth | None,
    loop: Loop = OURS,
    backend: Backend | None = None,
    accumulate: bool = False,
) -> Rehearsal:
    """The events of loading and of two optimizer steps of `recipe` on `device`.

    config: of the whole model. depth: which of its layers to run (from `find_depth`), None for all.
    accumulate: a step has more than one micro-batch. Raises: ModelError.
    """
    try:
        try:
            return _rehearse(recipe, config, device, depth, loop, backend, accumulate)
        except MismatchError:
            return _rehearse(recipe, config, device, None, loop, backend, accumulate)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"a step of {config.model_type} with these settings cannot be rehearsed: {reason}",
            fix="other settings (attention, loss, method), or another model",
        ) from error


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
) -> Rehearsal:
    with _real_masks():
        model = build_model(
            recipe, config=shortened(config, depth.rehearsed) if depth else config, weights=None, device="meta"
        )
        model.config.use_cache = False
        weights = _full(_weights(model, depth), depth)
        step = _Step(recipe, model, device, depth, loop, backend)
        first = step.micro_batch()
        rest = step.micro_batch() if accumulate else None
    trained = [w for w in weights if w.adapter]
    shapes = tuple((w.shape, w.dtype) for w in trained)
    optimizer = _optimizer_events(shapes, recipe.optimizer, device.cuda, loop.clip)
    return _assemble(recipe, weights, first, rest, optimizer, loop, device)


class _Step:
    """One micro-batch's forward and backward, with marks where layers begin and end."""

    def __init__(
        self, recipe: Recipe, model: Any, device: Device, depth: Depth | None, loop: Loop, backend: Backend | None
    ) -> None:
        self.recipe, self.model, self.device, self.depth, self.loop = recipe, model, device, depth, loop
        self.backend = backend
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.trace: Trace | None = None
        self.layers = 0
        _cast_biases(model)
        if depth is not None:
            self._mark_layers(model.get_base_model().get_submodule(depth.path))

    def _mark_layers(self, layers: Any) -> None:
        self.layers = len(layers)
        recomputed = "activations" if self.recipe.gradient_checkpointing else None

        def entering(layer: int) -> Any:
            def hook(*_: Any) -> None:
                assert self.trace is not None
                self.trace.begin("forward", layer, kind="activations")

            return hook

        def leaving(layer: int) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                trace = self.trace
                assert trace is not None
                if hidden.requires_grad:
                    hidden.register_hook(lambda _: trace.begin("backward", layer, recomputed=recomputed))
                if layer == self.layers - 1:
                    trace.begin("head", kind="logits")

            return hook

        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(entering(number))
            layer.register_forward_hook(leaving(number))

    def micro_batch(self) -> tuple[Extension, list[int]]:
        """(the events for the full depth, keys of the gradients there that outlive it)."""
        recipe = self.recipe
        trace = self.trace = Trace(CUDA_TRANSIENTS if self.device.cuda else None)
        for tensor in _stored(self.model):
            trace.ignore(tensor)
        for p in self.trainable:
            if p.grad is not None:
                trace.ignore(p.grad)
        recomputed = "activations" if recipe.gradient_checkpointing else None
        with trace, Kernels(self.device, self.backend):
            trace.begin("inputs", kind="inputs")
            batch = {"input_ids": _ids(recipe)}
            batch["labels"] = _ids(recipe) if self.loop.mask else batch["input_ids"]
            if self.loop.mask:
                batch["attention_mask"] = _ids(recipe)
            trace.begin("embed", kind="activations")
            kept: list[Any] = []
            if self.loop.keeps_output:
                hook = self.model.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
            loss = compute_loss(self.model, batch, recipe, num_trained_tokens=None)
            if self.loop.keeps_output:
                hook.remove()
            trace.begin("loss_backward", kind="logits", recomputed=recomputed)
            _backward(loss)
            trace.begin("end")
            gradients = [trace.follow(p.grad) for p in self.trainable if p.grad is not None]
            trace.begin("after")
            kept.clear()
            del loss, batch
        for key in gradients:
            if key >= 0:
                _relabel(trace.sections, key, KIND["gradients"])
        extension = Extension(trace.sections, self.depth, self.layers)
        held = [full for key in gradients if key >= 0 for _, full in extension.full_keys(key)]
        self.trace = None
        return extension, held


def _backward(loss: torch.Tensor) -> None:
    """loss.backward(), which is a torch function itself and so would run outside of Kernels."""
    from torch.autograd.graph import _engine_run_backward

    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _ids(recipe: Recipe) -> torch.Tensor:
    return torch.empty(recipe.micro_batch, recipe.seq_len, dtype=torch.long, device="meta")


def _relabel(sections: list[Section], key: int, kind: int) -> None:
    for section in reversed(sections):
        if section.first_key <= key < section.first_key + len(section.kinds):
            section.kinds[key - section.first_key] = kind
            return


def _cast_biases(model: Any) -> None:
    """Linear4bit.forward casts a bias to its input's dtype, for good, when it is first called."""
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit) and module.bias is not None and module.compute_dtype is not None:
            module.bias.data = module.bias.data.to(module.compute_dtype)


@contextmanager
def _real_masks() -> Iterator[None]:
    """transformers asks tensors for their values to find packed sequences; there are no values, and no packing here."""
    asked = transformers.masking_utils.find_packed_sequence_indices

    def found_none(position_ids: torch.Tensor) -> None:
        first = position_ids[:, :1] - 1
        difference = torch.diff(position_ids, prepend=first, dim=-1)
        (difference != 1).cumsum(-1)

    transformers.masking_utils.find_packed_sequence_indices = found_none
    try:
        yield
    finally:
        transformers.masking_utils.find_packed_sequence_indices = asked


# What the model is made of


def _stored(model: Any) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        yield parameter
        yield from (t for t, _ in _state_tensors(getattr(parameter, "quant_state", None)))
    yield from model.buffers()


def _state_tensors(state: Any) -> Iterator[tuple[torch.Tensor, int]]:
    if state is None:
        return
    for part in filter(None, (state, state.state2)):
        for tensor in (part.absmax, part.code, part.offset):
            if tensor is not None:
                yield tensor, KIND["quantization_state"]


def _weights(model: Any, depth: Depth | None) -> list[_Weight]:
    """Every stored tensor once, in the order of the modules, buffers last."""
    found: dict[int, _Weight] = {}
    pattern = re.compile(rf"{re.escape(depth.path)}\.(\d+)\." if depth else r"$^(\d)")
    tensors = [(name, p, "lora_" in name) for name, p in model.named_parameters(remove_duplicate=False)]
    tensors += [(name, b, False) for name, b in model.named_buffers()]
    for name, tensor, adapter in tensors:
        if id(tensor) in found:
            continue
        state = getattr(tensor, "quant_state", None)
        sizes = [(t.numel() * t.element_size(), kind) for t, kind in _state_tensors(state)]
        sizes.append((tensor.numel() * tensor.element_size(), KIND["adapter" if adapter else "weights"]))
        match = pattern.search(name)
        found[id(tensor)] = _Weight(
            name=name,
            layer=int(match[1]) if match else None,
            sizes=sizes,
            passing=2 * state.shape.numel() if state is not None else 0,
            adapter=adapter,
            params=state.shape.numel() if state is not None else tensor.numel(),
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
        )
    return list(found.values())


def _full(weights: list[_Weight], depth: Depth | None) -> list[_Weight]:
    """The tensors of the full depth, each layer's own in the place of the layer that stands for it."""
    if depth is None:
        return weights
    by_layer: dict[int, list[_Weight]] = {}
    for weight in weights:
        if weight.layer is not None:
            by_layer.setdefault(weight.layer, []).append(weight)
    full: list[_Weight] = []
    done = False
    for weight in weights:
        if weight.layer is None:
            full.append(weight)
        elif not done:
            done = True
            for layer in range(depth.layers):
                for like in by_layer[depth.stands_for[layer]]:
                    name = like.name.replace(f"{depth.path}.{like.layer}.", f"{depth.path}.{layer}.")
                    full.append(replace(like, name=name, layer=layer))
    return full


# The other phases


@functools.lru_cache(maxsize=16)
def _optimizer_events(
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...], name: Optimizer, cuda: bool, clip: bool
) -> tuple[list[Event], list[Event], list[int], int]:
    """(events of the first step, of a steady one, kinds of the keys, bytes of paged state)."""
    parameters = [torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape, dtype in shapes]
    recipe = Recipe(optimizer=name)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    trace = Trace()
    for parameter in parameters:
        trace.ignore(parameter)
        assert parameter.grad is not None
        trace.ignore(parameter.grad)
    optimizer = build_optimizer(parameters, recipe, learning_rate=1e-4, foreach=cuda or None)
    managed = 0
    if name == "paged_adamw_8bit" and cuda:
        paged_optimizer: Any = optimizer
        on_device = paged_optimizer.get_state_buffer

        def state_buffer(p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            nonlocal managed
            if p.numel() < PAGED_ELEMENTS:
                return on_device(p, dtype)  # type: ignore[no-any-return]
            paged = torch.empty(p.shape, dtype=dtype, device="meta")
            managed += paged.numel() * paged.element_size()
            return paged

        paged_optimizer.get_state_buffer = state_buffer
    if name != "adamw_torch":
        _keep_on_meta(optimizer)
    steps = []
    with trace:
        for _ in range(2):
            trace.begin("optimizer")
            if clip:
                _clip(parameters, at_once=cuda)
            optimizer.step()
            steps.append(trace.sections[-1])
            for parameter in parameters:
                trace.ignore(parameter.grad)  # type: ignore[arg-type]
    kinds = [KIND["temporaries"]] * (steps[-1].first_key + len(steps[-1].kinds))
    for key in trace.live_keys():
        kinds[key] = KIND["optimizer"]
    first = steps[0].events
    return first, steps[1].events, kinds, managed


def _clip(parameters: list[torch.nn.Parameter], *, at_once: bool) -> None:
    """torch.nn.utils.clip_grad_norm_; at once, as on a GPU, in its own two steps: it refuses to on meta."""
    if not at_once:
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    factor = CLIP_NORM / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)
    torch._foreach_mul_(gradients, torch.clamp(factor, max=1.0))


def _keep_on_meta(optimizer: Any) -> None:
    """bitsandbytes moves state and looks for a GPU before its first step; there is nothing to move."""
    import bitsandbytes.optim.optimizer as module

    optimizer.to_gpu = lambda: None
    module.sync_gpu = lambda _: None


def _load_events(
    recipe: Recipe, weights: list[_Weight], loop: Loop, keys: Iterator[int]
) -> tuple[list[Event], dict[int, int]]:
    """Loading, as transformers' from_pretrained does it with a device map, then k-bit preparation, then the adapter.

    Returns the events and the kind of each key that stays.
    """
    events: list[Event] = []
    kinds: dict[int, int] = {}

    def take(size: int, kind: int) -> int:
        key = next(keys)
        events.append((key, max(size, 1)))
        kinds[key] = kind
        return key

    base = [w for w in weights if not w.adapter]
    quantized = recipe.quant_type is not None
    parameters = [w for w in base if not _is_buffer(w)]
    buffers = [w for w in base if _is_buffer(w)]
    if loop.warm_up or quantized:
        parameters = sorted(parameters, key=lambda w: _natural(w.name))
        halves = {"float32": 4}.get(recipe.base_dtype, 2)
        whole = sum(w.params // 2 if w.passing else halves * w.params for w in parameters)
        key = take(whole, KIND["temporaries"])
        events.append((key, -max(whole, 1)))
    doubled: list[tuple[_Weight, int]] = []
    read: list[int] = []  # keys of the tensors as they were read, 16-bit where they are changed afterwards
    for number, weight in enumerate(parameters):
        for ahead in parameters[len(read) : number + (loop.threads if quantized else 1)]:
            if ahead.passing:
                read.append(take(ahead.passing, KIND["temporaries"]))
            elif recipe.kbit_upcast and ahead.dtype == torch.float32:
                read.append(take(2 * ahead.params, KIND["weights"]))
            else:
                read.append(take(ahead.sizes[0][0], KIND["weights"]))
        if weight.passing:
            for size, kind in weight.sizes:
                take(size, kind)
            events.append((read[number], -weight.passing))
        elif recipe.kbit_upcast and weight.dtype == torch.float32:
            doubled.append((weight, read[number]))
    for weight, half in doubled:
        take(4 * weight.params, KIND["weights"])
        events.append((half, -2 * weight.params))
    for weight in buffers:
        for size, kind in weight.sizes:
            take(size, kind)
    for weight in weights:
        if weight.adapter:
            for size, kind in weight.sizes:
                take(size, kind)
    return events, kinds


def _is_buffer(weight: _Weight) -> bool:
    return not weight.adapter and weight.name.rsplit(".", 1)[-1] not in ("weight", "bias") and weight.params < 2**16


def _natural(name: str) -> list[tuple[int, int, str]]:
    name = re.sub(r"base_model\.model\.|\.base_layer", "", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _assemble(
    recipe: Recipe,
    weights: list[_Weight],
    first: tuple[Extension, list[int]],
    rest: tuple[Extension, list[int]] | None,
    optimizer: tuple[list[Event], list[Event], list[int], int],
    loop: Loop,
    device: Device,
) -> Rehearsal:
    """Loading, then two optimizer steps, every key of its own."""
    kinds: list[int] = []

    def keys() -> Iterator[int]:
        while True:
            kinds.append(KIND["weights"])
            yield len(kinds) - 1

    load, load_kinds = _load_events(recipe, weights, loop, keys())
    for key, kind in load_kinds.items():
        kinds[key] = kind
    phases = [Phase("load", load, loop.empty_cache)]
    workspace = device.cublas_workspace_bytes if device.cuda else 0
    optimizer_first, optimizer_steady, optimizer_kinds, managed = optimizer
    state_from = 0
    steady = 0
    for step in (1, 2):
        if step == 2:
            steady = len(phases)
        gradients: list[tuple[int, int]] = []
        for number, micro in enumerate((first, rest) if rest else (first,)):
            assert micro is not None
            extension, kept = micro
            offset = len(kinds)
            kinds.extend(extension.kinds)
            begun, over = _start_of(extension, "loss_backward"), _start_of(extension, "after")
            forward, backward = extension.events[:begun], extension.events[begun:over]
            after = [(k + offset, s) for k, s in extension.events[over:]]
            extra: list[list[Event]] = [[], []]
            if workspace and step == 1 and number == 0:
                for piece in extra:
                    piece.append((len(kinds), workspace))
                    kinds.append(KIND["workspaces"])
            phases.append(Phase("forward", extra[0] + [(k + offset, s) for k, s in forward]))
            phases.append(Phase("backward", extra[1] + [(k + offset, s) for k, s in backward]))
            sizes = dict(e for e in extension.events if e[1] > 0)
            gradients += [(key + offset, -sizes[key]) for key in kept]
            if number == 0 and rest:
                phases[-1].events.extend(after)
        if step == 1:
            state_from = len(kinds)
            kinds.extend(optimizer_kinds)
        events = optimizer_first if step == 1 else optimizer_steady
        phases.append(Phase("optimizer", [(k + state_from, s) for k, s in events] + after + gradients))
    parts = first[0].parts
    return Rehearsal(
        phases=phases,
        kinds=kinds,
        steady=steady,
        flops=sum(section.flops for section, _ in parts),
        moved_bytes=sum(section.moved_bytes for section, _ in parts),
        kernels=sum(section.kernels for section, _ in parts),
        trainable_params=sum(w.params for w in weights if w.adapter),
        total_params=sum(w.params for w in weights if not _is_buffer(w)),
        managed_bytes=managed,
    )


def _start_of(extension: Extension, name: str) -> int:
    start = 0
    for section, end in extension.parts:
        if section.name == name:
            return start
        start = end
    raise ModelError(f"the step has no {name}")
