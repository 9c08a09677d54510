"""The rehearsal: the trainer's own step on tensors without storage, every allocation of it in order."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import transformers.masking_utils
from torch.utils._python_dispatch import _disable_current_modes

from autoft.errors import ModelError
from autoft.planner.depth import Depth, Events, Extension, Ints, MismatchError, depth_of, shortened
from autoft.planner.kernels import CPU_RESULTS, Backend, Device, Kernels, scratch
from autoft.planner.trace import KIND, Event, Made, Section, Trace
from autoft.planner.work import Work
from autoft.trainer import offload
from autoft.trainer.build import build_base, build_model
from autoft.trainer.loss import compute_loss
from autoft.trainer.optim import build_optimizer
from autoft.trainer.recipe import Optimizer, Recipe

aten = torch.ops.aten
CLIP_NORM = 1.0  # any norm: what is clipped does not change what is allocated
KEPT_MODELS, KEPT_EVALUATIONS = 8, 64
# Products by cuBLAS; one in 4 bits comes just before those of its adapter
_PRODUCTS = frozenset((aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default))
PAGED_ELEMENTS = 1e5  # bitsandbytes.optim.optimizer.get_state_buffer: smaller states stay on the device


OutputUntil = Literal["loss", "step", "next_forward"]


@dataclass(frozen=True, slots=True)
class Loop:
    """How a step is run around the recipe.

    clip: gradients are clipped by their norm. device_map: weights that stay in 16 bits too are loaded right onto the
    device; loading then begins with one block as large as the model (transformers' caching_allocator_warmup).
    kbit_empties_cache: k-bit preparation gives back what it left free (PEFT from 0.20 on). empty_cache: what loading
    leaves free is given back. expandable_segments: of PyTorch's allocator.
    mask: the batch carries an attention mask and labels of its own. output_until: how long the model's output, logits
    and all, lives: "loss" is computed, the optimizer's "step" is done, or the "next_forward" has given another, as
    `out = model(...); out.loss.backward()` in a plain loop makes it.
    """

    clip: bool = True
    device_map: bool = True
    kbit_empties_cache: bool = False
    empty_cache: bool = True
    expandable_segments: bool = True
    mask: bool = True
    output_until: OutputUntil = "loss"


OURS = Loop()
# Hugging Face's own loop, as its documentation writes it
PLAIN = Loop(
    clip=False,
    device_map=False,
    kbit_empties_cache=True,
    empty_cache=False,
    expandable_segments=False,
    mask=False,
    output_until="step",
)


@dataclass(frozen=True, slots=True)
class Phase:
    """Events of one phase. empty_cache: the allocator gives back what is free when it ends.

    marks: (first event, section, layer) of each section that begins in it.
    """

    name: str
    events: Events
    empty_cache: bool = False
    marks: list[tuple[int, str, int | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """phases: load, then first steps, then one steady step, in order. kinds: of every key.

    steady: name of the first phase of the steady step. work: of one micro-batch, and of an optimizer step.
    managed_bytes: of paged optimizer state, outside the device's allocator. offloaded_bytes: checkpoints on the host.
    makers: what made the storages from a key on, for those of the steps. weights: what the model stores.
    evaluation: what trainer/evaluate.py does with one batch, by name, each with keys of its own.
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
    weights: list[_Weight]
    evaluation: dict[str, Extension] = field(default_factory=dict)
    offloaded_bytes: int = 0

    @property
    def made(self) -> dict[int, Made]:
        """What made the storage of a key, for those of the steps."""
        found: dict[int, Made] = {}
        for first, maker in self.makers:
            found.update(enumerate(maker.made if isinstance(maker, Extension) else maker, first))
        return found


@dataclass(frozen=True, slots=True)
class _Weight:
    """One stored tensor of the model. size: in bytes. state: sizes of its quantization state, if it is packed.

    stored: in the checkpoint; other buffers are made with the model. params: how many weights it holds, packed or not.
    """

    name: str
    layer: int | None
    size: int
    state: tuple[int, ...]
    adapter: bool
    stored: bool
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
    kept: Kept | None = None,
) -> Rehearsal:
    """The events of loading and of two optimizer steps of `recipe` on `device`.

    config: of the whole model. depth: which of its layers to run (from `find_depth`), None for all.
    accumulate: a step has more than one micro-batch. kept: from earlier calls with the same config. Raises: ModelError.
    """
    attempts = [depth, depth.full, None] if depth else [None]
    try:
        for attempt in attempts:
            with suppress(MismatchError):
                return _rehearse(recipe, config, device, attempt, loop, backend, accumulate, kept or Kept())
        raise ValueError("its layers do not join")
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ImportError, NameError) as error:
        reason = " ".join(str(error).split())[:200]
        if "meta" in reason:
            reason = f"it asks tensors for values, and a rehearsal has none ({reason})"
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
    kept: Kept,
) -> Rehearsal:
    around = (device, depth, loop, backend)
    with _real_masks(packed=recipe.packing):
        model = (replace(recipe, micro_batch=1, seq_len=1, optimizer="adamw_torch"), *around)
        kept.make_room()
        if model not in kept.steps:
            kept.steps[model] = _Step(recipe, config, *around)
        step = kept.steps[model].of(recipe)
        first = step.micro_batch()
        rest = step.micro_batch() if accumulate else None
    alone = replace(
        recipe, gradient_checkpointing=False, offload_checkpoints=False, optimizer="adamw_torch", packing=False
    )
    evaluated = (alone, *around)
    if evaluated not in kept.evaluations:
        with _real_masks(packed=False):  # held-out rows are never packed
            kept.evaluations[evaluated] = step.of(replace(step.recipe, packing=False)).evaluation()
    shapes = tuple((w.shape, w.dtype) for w in step.weights if w.adapter)
    optimizer = _optimizer_events(shapes, recipe.optimizer, device, loop.clip)
    rehearsal = _assemble(recipe, step.weights, first, rest, optimizer, loop, device)
    return replace(rehearsal, evaluation=kept.evaluations[evaluated], offloaded_bytes=step.offloaded_bytes)


@dataclass(slots=True)
class Kept:
    """What rehearsals of one configuration share: models, by all that shapes them, and evaluations."""

    steps: dict[Any, _Step] = field(default_factory=dict)
    evaluations: dict[Any, dict[str, Extension]] = field(default_factory=dict)

    def make_room(self) -> None:
        """Let go of what has been kept once it is much."""
        for kept, most in ((self.steps, KEPT_MODELS), (self.evaluations, KEPT_EVALUATIONS)):
            if len(kept) >= most:
                kept.clear()


class _Step:
    """One micro-batch's forward and backward, with marks where layers begin and end. weights: of the full depth."""

    def __init__(
        self, recipe: Recipe, config: Any, device: Device, depth: Depth | None, loop: Loop, backend: Backend | None
    ) -> None:
        self.recipe, self.device, self.depth, self.loop, self.backend = recipe, device, depth, loop, backend
        model = self.model = build_model(
            recipe, config=shortened(config, depth.rehearsed) if depth else config, weights=None, device="meta"
        )
        model.config.use_cache = False
        self.weights = _full(_weights(model, depth), depth)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.trace: Trace | None = None
        self.layers = 0
        self.offloaded: dict[int | None, int] = {}
        _cast_biases(model)
        _settle_frequencies(model)
        if depth is not None:
            self._mark_layers(model.get_base_model().get_submodule(depth.path))

    def of(self, recipe: Recipe) -> _Step:
        """Made anew for a recipe that differs in batch or optimizer alone."""
        self.recipe = recipe
        for parameter in self.trainable:
            parameter.grad = None
        return self

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

    @property
    def offloaded_bytes(self) -> int:
        """Of the last micro-batch's checkpoints, on the host, in the full depth."""
        run = range(self.layers) if self.depth is None else (self.depth.stands_for[n] for n in range(self.depth.layers))
        return self.offloaded.get(None, 0) + sum(self.offloaded.get(layer, 0) for layer in run)

    def micro_batch(self) -> tuple[Extension, list[int]]:
        """(the events for the full depth, keys of the gradients there that outlive it)."""
        recipe = self.recipe
        trace = self.trace = Trace(scratch(self.device), None if self.device.cuda else CPU_RESULTS)
        for tensor in _stored(self.model):
            trace.ignore(tensor)
        for p in self.trainable:
            if p.grad is not None:
                trace.ignore(p.grad)
        recomputed = "activations" if recipe.gradient_checkpointing else None
        kernels = Kernels(self.device, self.backend, packed=recipe.packing)
        self.offloaded = {}
        with trace, kernels, _random_states(trace, self.device), _host_copies(trace, self.offloaded):
            trace.begin("inputs", kind="inputs")
            batch = self._batch()
            trace.begin("embed", kind="activations")
            kept: list[Any] = []
            if self.loop.output_until != "loss":
                hook = self.model.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
            loss = compute_loss(self.model, batch, recipe, num_trained_tokens=None)
            if self.loop.output_until != "loss":
                hook.remove()
            trace.begin("loss_backward", kind="logits", recomputed=recomputed)
            _backward(loss)
            trace.begin("end")
            if self.loop.output_until == "loss":
                loss = loss.detach()  # what Trainer.training_step returns: the graph ends here
            gradients = [trace.follow(p.grad) for p in self.trainable if p.grad is not None]
            trace.begin("after")
            kept.clear()
            del loss, batch
        for key in gradients:
            if key >= 0:
                _relabel(trace.sections, key, KIND["gradients"])
        extension = Extension(trace.sections, self.depth)
        held = [full for key in gradients if key >= 0 for _, full in extension.full_keys(key)]
        self.trace = None
        return extension, held

    def evaluation(self) -> dict[str, Extension]:
        """The loss of a batch and, on a GPU, the reading of a prompt as long as a row, its keys and values kept.

        On a CPU answers are generated for as many rows as memory is wide, whose prompts are not known here. A prompt is
        left out where the model's cache cannot be rehearsed.
        """
        model, recipe = self.model.eval(), self.recipe
        try:
            found = {"loss": self._evaluated(lambda: compute_loss(model, self._batch(), recipe, num_trained_tokens=1))}
            if self.device.cuda:
                with suppress(MismatchError, RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                    ids = _ids(recipe)
                    found["prompt"] = self._evaluated(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
        finally:
            self.model.train()
        return found

    def _evaluated(self, call: Callable[[], Any]) -> Extension:
        trace = self.trace = Trace(scratch(self.device), None if self.device.cuda else CPU_RESULTS)
        for tensor in (*_stored(self.model), *(p.grad for p in self.trainable if p.grad is not None)):
            trace.ignore(tensor)
        try:
            with trace, Kernels(self.device, self.backend), torch.no_grad():
                trace.begin("inputs")
                output = call()
                trace.begin("after")
                del output
        finally:
            self.trace = None
        return Extension(trace.sections, self.depth)

    def _batch(self) -> dict[str, torch.Tensor]:
        batch = {"input_ids": _ids(self.recipe)}
        batch["labels"] = _ids(self.recipe) if self.loop.mask else batch["input_ids"]
        if self.loop.mask:
            batch["attention_mask"] = _ids(self.recipe)
        if self.recipe.packing:
            batch["position_ids"] = _ids(self.recipe)
            if self.recipe.attention == "flash_attention_2":  # trainer/data/pack.py lays the rows end to end
                batch = {name: ids.view(1, -1) for name, ids in batch.items()}
        return batch


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


def _settle_frequencies(model: Any) -> None:
    """Leave "dynamic" rotary frequencies as they are, which holds for all positions that a model was made for.

    dynamic_frequency_update of transformers/modeling_rope_utils.py asks the positions for their values and compares.
    """

    def compare(_module: Any, args: Any, kwargs: Any) -> None:
        longest = torch.max(kwargs.get("position_ids", args[-1])) + 1
        for bound in (torch.gt, torch.lt):
            bound(longest, 0)

    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.rope_type = "default"
            module.register_forward_pre_hook(compare, with_kwargs=True)


@contextmanager
def _real_masks(*, packed: bool) -> Iterator[None]:
    """transformers asks tensors for their values to find packed sequences; there are no values, so it is told.

    Rows are taken to share more than one example each, as all but those do that one fills alone.
    """
    asked = transformers.masking_utils.find_packed_sequence_indices

    def found(position_ids: torch.Tensor) -> torch.Tensor | None:
        first = position_ids[:, :1] - 1
        difference = torch.diff(position_ids, prepend=first, dim=-1)
        numbers_BS = (difference != 1).cumsum(-1)
        return numbers_BS if packed else None

    transformers.masking_utils.find_packed_sequence_indices = found
    try:
        yield
    finally:
        transformers.masking_utils.find_packed_sequence_indices = asked


@contextmanager
def _random_states(trace: Trace, device: Device) -> Iterator[None]:
    """Checkpointing keeps the state of the CPU's generator for each layer, which counts where the device is the CPU."""
    asked = torch.get_rng_state

    def followed() -> torch.Tensor:
        state = asked()
        trace.follow(state)
        return state

    if not device.cuda:
        torch.get_rng_state = followed
    try:
        yield
    finally:
        torch.get_rng_state = asked


@contextmanager
def _host_copies(trace: Trace, taken: dict[int | None, int]) -> Iterator[None]:
    """What checkpoints leave on the host, by layer, in `taken`: pinned blocks are powers of two.

    round_size in aten/src/ATen/core/CachingHostAllocator.h.
    """

    def to_host(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.Size, torch.dtype]:
        if not tensor.is_meta or not tensor.numel():
            return tensor
        size = tensor.numel() * tensor.element_size()
        layer = trace.sections[-1].layer
        taken[layer] = taken.get(layer, 0) + (1 << (size - 1).bit_length())
        return tensor.shape, tensor.dtype

    def to_device(saved: torch.Tensor | tuple[torch.Size, torch.dtype]) -> torch.Tensor:
        return saved if isinstance(saved, torch.Tensor) else torch.empty(saved[0], dtype=saved[1], device="meta")

    asked = offload.to_host, offload.to_device
    offload.to_host, offload.to_device = to_host, to_device  # type: ignore[assignment]
    try:
        yield
    finally:
        offload.to_host, offload.to_device = asked


# What the model is made of


def _stored(model: Any) -> Iterator[torch.Tensor]:
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
                yield from _state_tensors(module, tensor)


def _state_tensors(module: Any, weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """absmax, code and, of scales that are quantized too, offset, absmax and code; the scales of an 8-bit weight."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear8bitLt) and weight is module.weight:
        yield module.state.SCB
    state: Any = getattr(weight, "quant_state", None)
    if state is None:
        return
    for part in filter(None, (state, state.state2)):
        for tensor in (part.absmax, part.code, part.offset):
            if tensor is not None:
                yield tensor


def _weights(model: Any, depth: Depth | None) -> list[_Weight]:
    """Every tensor once, in the order of the modules."""
    found: dict[int, _Weight] = {}
    pattern = re.compile(rf"{re.escape(depth.path)}\.(\d+)\." if depth else r"$^(\d)")
    tensors = [
        (f"{path}.{name}", tensor, name not in module._non_persistent_buffers_set, module)
        for path, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]
    for name, tensor, stored, module in tensors:
        if id(tensor) in found:
            continue
        state = getattr(tensor, "quant_state", None)
        match = pattern.search(name)
        found[id(tensor)] = _Weight(
            name=name,
            layer=int(match[1]) if match else None,
            size=tensor.numel() * tensor.element_size(),
            state=tuple(t.numel() * t.element_size() for t in _state_tensors(module, tensor)),
            adapter="lora_" in name,
            stored=stored,
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
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...], name: Optimizer, device: Device, clip: bool
) -> tuple[Events, Events, list[int], int, list[Made], Work]:
    """(events of the first step, of a steady one, kinds of the keys, bytes of paged state, what made each key,
    work of a steady one)."""
    parameters = [torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape, dtype in shapes]
    recipe = Recipe(optimizer=name)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    trace = Trace(scratch(device))
    for parameter in parameters:
        trace.ignore(parameter)
        assert parameter.grad is not None
        trace.ignore(parameter.grad)
    optimizer = build_optimizer(parameters, recipe, learning_rate=1e-4, foreach=device.cuda or None)
    managed = 0
    if name == "paged_adamw_8bit" and device.cuda:
        paged_optimizer: Any = optimizer
        on_device = paged_optimizer.get_state_buffer

        def state_buffer(p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            nonlocal managed
            if p.numel() < PAGED_ELEMENTS:
                return on_device(p, dtype)  # type: ignore[no-any-return]
            with _disable_current_modes():
                paged = torch.empty(p.shape, dtype=dtype, device="meta")
            trace.ignore(paged)
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
                _clip(parameters, at_once=device.cuda)
            optimizer.step()
            steps.append(trace.sections[-1])
            for parameter in parameters:
                trace.ignore(parameter.grad)  # type: ignore[arg-type]
    kinds = [KIND["temporaries"]] * (steps[-1].first_key + len(steps[-1].kinds))
    for key in trace.live_keys():
        kinds[key] = KIND["optimizer"]
    made = [made for section in trace.sections for made in section.made]
    return _events(steps[0].events), _events(steps[1].events), kinds, managed, made, steps[1].work


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


def _load_phases(recipe: Recipe, weights: list[_Weight], loop: Loop, kinds: list[int]) -> list[Phase]:
    """Loading: transformers' from_pretrained with a device map, k-bit preparation, the adapter. Adds to `kinds`.

    convert_and_load_state_dict_in_model of transformers/core_model_loading.py: one tensor after another in the natural
    order of their names, read in 16 bits, packed, and dropped; prepare_model_for_kbit_training of peft/utils/other.py:
    float32 copies in the order of the modules, then the cache is emptied.
    """
    events: list[Event] = []

    def take(size: int, kind: str) -> int:
        kinds.append(KIND[kind])
        events.append((len(kinds) - 1, size))
        return len(kinds) - 1

    def drop(key: int, size: int) -> None:
        events.append((key, -size))

    quantized, bits = recipe.quant_type is not None, 8 if recipe.quant_type == "int8" else 4
    parameters = [w for w in weights if not w.adapter and w.stored]
    stored = parameters
    if loop.device_map or quantized:
        stored = sorted(parameters, key=lambda w: _natural(w.name))
        width = 4 if recipe.base_dtype == "float32" else 2
        whole = sum(w.params * bits // 8 if w.state else width * w.params for w in parameters)
        drop(take(whole, "temporaries"), whole)
    halves: dict[str, int] = {}  # to be copied into float32
    for weight in stored:
        upcast = recipe.kbit_upcast and weight.dtype == torch.float32
        size = 2 * weight.params if weight.state or upcast else weight.size
        key = take(size, "temporaries" if weight.state else "weights")
        if weight.state:
            _pack(weight, take, drop)
            drop(key, size)
        elif upcast:
            halves[weight.name] = key
    for weight in parameters:
        if weight.name in halves:
            take(4 * weight.params, "weights")
            drop(halves[weight.name], 2 * weight.params)
    phases = []
    if recipe.kbit_upcast and loop.kbit_empties_cache:
        phases.append(Phase("load", _events(events), empty_cache=True))
        events = []
    for weight in weights:
        if not weight.stored:
            take(weight.size, "weights")
    adapters = [w for w in weights if w.adapter]
    # PEFT makes them in the dtype of their layer and casts them all afterwards
    halved = [] if quantized or recipe.adapter_dtype != "float32" or recipe.base_dtype == "float32" else adapters
    first = [take(2 * w.params, "temporaries") for w in halved]
    for number, weight in enumerate(adapters):
        take(weight.size, "adapter")
        if halved:
            drop(first[number], 2 * weight.params)
    phases.append(Phase("load", _events(events), loop.empty_cache))
    return phases


def _pack(weight: _Weight, take: Callable[[int, str], int], drop: Callable[[int, int], None]) -> None:
    """bitsandbytes.functional.quantize_4bit and, for its scales, quantize_blockwise, in their order; or in 8 bits."""
    kind = "quantization_state"
    state = weight.state
    if weight.dtype == torch.int8:  # Int8Params._quantize of nn/modules.py, by way of float16
        halves = take(2 * weight.params, "temporaries")
        take(state[0], kind)
        take(weight.size, "weights")
        drop(halves, 2 * weight.params)
        return
    if len(state) == 2:  # absmax, code
        take(state[0], kind)
    else:
        scales = 4 * state[0]  # before they are 8 bits wide themselves
        plain = take(scales, "temporaries")
    take(weight.size, "weights")
    take(state[1], kind)
    for size in (state[1], 4):  # get_4bit_type: data.div_(data.abs().max())
        drop(take(size, "temporaries"), size)
    if len(state) > 2:
        _, _, offset, outer_absmax, outer_code = state
        take(offset, kind)
        centred = take(scales, "temporaries")
        take(outer_absmax, kind)
        take(state[0], kind)
        take(outer_code, kind)
        drop(centred, scales)
        drop(plain, scales)


def _natural(name: str) -> list[tuple[int, int, str]]:
    name = re.sub(r"base_model\.model\.|\.base_layer", "", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _assemble(
    recipe: Recipe,
    weights: list[_Weight],
    first: tuple[Extension, list[int]],
    rest: tuple[Extension, list[int]] | None,
    optimizer: tuple[Events, Events, list[int], int, list[Made], Work],
    loop: Loop,
    device: Device,
) -> Rehearsal:
    """Loading, then two optimizer steps, every key of its own."""
    load_kinds: list[int] = []
    phases = _load_phases(recipe, weights, loop, load_kinds)
    kinds: list[Any] = [load_kinds]
    num_keys = len(load_kinds)
    workspace = device.cublas_workspace_bytes if device.cuda else 0
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
                if workspace and step == 1 and number == 0:
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
        _append(phases, -1, _events(gradients))
    return Rehearsal(
        phases=phases,
        kinds=np.concatenate([np.array(piece, dtype=np.int64) for piece in kinds]),
        steady=steady,
        work=first[0].work,
        optimizer_work=optimizer_work,
        trainable_params=sum(w.params for w in weights if w.adapter),
        total_params=sum(w.params for w in weights if w.stored),
        managed_bytes=managed,
        makers=makers,
        weights=weights,
    )


def _events(events: list[Event]) -> Events:
    return np.array(events, dtype=np.int64).reshape(-1, 2)


def _append(phases: list[Phase], number: int, *events: Events) -> None:
    """`events` to those of a phase."""
    phases[number] = replace(phases[number], events=np.concatenate((phases[number].events, *events)))


def _first_product(extension: Extension, start: int, end: int) -> int:
    """After which of the events from start to end cuBLAS is asked for: the first product of matrices has its result.

    aten cuda/Blas.cpp takes the handle, and with it the workspace, once the result has been made; `end` without one.
    """
    key = 0
    for section, stop in extension.parts:
        products = (place for place, made in enumerate(section.made) if made[0] in _PRODUCTS)
        first = next(products, None) if stop > start else None
        if first is not None:
            (place,) = np.flatnonzero((extension.events[:, 0] == key + first) & (extension.events[:, 1] > 0))
            return min(int(place) + 1, end)
        key += len(section.kinds)
    return end


def _start_of(extension: Extension, name: str) -> int:
    start = 0
    for section, end in extension.parts:
        if section.name == name:
            return start
        start = end
    raise ModelError(f"the step has no {name}")
