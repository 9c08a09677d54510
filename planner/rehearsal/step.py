"""The rehearsal: the trainer's own step on tensors without storage, every allocation of it in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from autoft.errors import ModelError
from autoft.planner.kernels.attention import Backend
from autoft.planner.kernels.dispatch import CPU_RESULTS, Kernels, scratch
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.assembly import Assembly, assemblies
from autoft.planner.rehearsal.layers import (
    Depth,
    Events,
    Extension,
    Ints,
    MismatchError,
    as_events,
    depth_of,
    shortened,
)
from autoft.planner.rehearsal.loading import (
    Weight,
    full_depth,
    largest_decomposition,
    load_phases,
    stored_tensors,
    streamed_bytes,
    weights_of,
)
from autoft.planner.rehearsal.loop import OURS, Loop, Phase
from autoft.planner.rehearsal.older import arrange, older_attention
from autoft.planner.rehearsal.optimizer import optimizer_events
from autoft.planner.tracing.reference_code import reference_code
from autoft.planner.tracing.trace import KIND, Made, Section, Trace
from autoft.planner.tracing.work import Work
from autoft.trainer.compat.torch import RNG_STATE, RUN_BACKWARD
from autoft.trainer.compat.transformers import PACKED_SEQUENCES
from autoft.trainer.model import offload
from autoft.trainer.model.build import build_base, build_model, without_adapter
from autoft.trainer.objectives import objective_of
from autoft.trainer.optimizers.optim import is_faster
from autoft.trainer.recipe import Recipe

aten = torch.ops.aten
# Inputs that code asks for by name where it is given text alone
OTHER_INPUTS = {
    "pixel_values": "an image",
    "input_features": "a sound",
    "mm_token_type_ids": "the input mm_token_type_ids",
}
# What models and libraries raise that are asked for what a rehearsal cannot give
CANNOT_BE_REHEARSED = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ImportError, NameError)
Result = TypeVar("Result")
Place = tuple[int, int]  # (number of a section, that of an event there)
KEPT_MODELS, KEPT_MICRO_BATCHES, KEPT_EVALUATIONS = 8, 16, 64


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
        found: dict[int, Made] = {}
        for first, maker in self.makers:
            found.update(enumerate(maker.made if isinstance(maker, Extension) else maker, first))
        return found

    @property
    def written_params(self) -> int:
        """Of an adapter all weights, those that stay as they are drawn too; else what is trained."""
        return sum(weight.params for weight in self.weights if weight.trained or weight.adapter)


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
        reason = " ".join(str(error).split())[:200]
        other = next((other for name, other in OTHER_INPUTS.items() if name in reason), None)
        if other is not None:
            raise ModelError(
                f"a {config.model_type} model takes no text without {other}, and autoft trains on text",
                fix="choose another model",
            ) from error
        if "meta" in reason:
            reason = f"it asks tensors for values, and a rehearsal has none ({reason})"
        raise ModelError(
            f"a step of {config.model_type} with these settings cannot be rehearsed: {reason}",
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
    with _real_masks(packed=recipe.packing):
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
        with _real_masks(packed=False):  # held-out rows are never packed
            kept.evaluations[evaluated] = step.of(replace(step.recipe, packing=False)).evaluation()
    trained = [w for w in step.weights if w.trained]
    shapes = tuple((w.shape, w.dtype) for w in trained)
    faster = frozenset(at for at, w in enumerate(trained) if is_faster(w.name, len(w.shape), recipe))
    optimizer = optimizer_events(shapes, recipe.optimizer, device, loop.clip, faster)
    rehearsal = _assemble(recipe, step.weights, first, micro_batches.rest, optimizer, loop, device)
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
        with _real_masks(packed=False):
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
) -> _Step:
    """The step of `recipe`, whose model may be one that was built before."""
    around = (device, depth, loop, backend)
    model = (replace(recipe, micro_batch=1, seq_len=1, optimizer="adamw_torch"), *around)
    kept.make_room()
    if model not in kept.steps:
        rehearsed = shortened(config, depth.rehearsed) if depth else config
        loaded = (depth, recipe.weights_dtype, recipe.attention)
        if loaded not in kept.assemblies:
            kept.assemblies[loaded] = assemblies(rehearsed, recipe)
        kept.steps[model] = _Step(recipe, rehearsed, kept.assemblies[loaded], *around)
    return kept.steps[model].of(recipe)


@dataclass(frozen=True, slots=True)
class _MicroBatches:
    """The first micro-batch of a step and any later one; None where there is one. offloaded_bytes: of one."""

    first: tuple[Extension, list[int]]
    rest: tuple[Extension, list[int]] | None
    offloaded_bytes: int


@dataclass(slots=True)
class Kept:
    """What rehearsals of one configuration share: models, by all that shapes them, how weights load, evaluations, and
    micro-batches, which are the same whatever the optimizer and wherever the layers wait."""

    steps: dict[Any, _Step] = field(default_factory=dict)
    micro_batches: dict[Any, _MicroBatches] = field(default_factory=dict)
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


class _Step:
    """One micro-batch's forward and backward, with marks where layers begin and end. weights: of the full depth.

    config: of the layers that `depth` rehearses. made: how loading makes their weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: Any,
        made: dict[str, Assembly],
        device: Device,
        depth: Depth | None,
        loop: Loop,
        backend: Backend | None,
    ) -> None:
        self.recipe, self.device, self.depth, self.loop, self.backend = recipe, device, depth, loop, backend
        model = self.model = build_model(recipe, config=config, weights=None, device="meta")
        model.config.use_cache = False
        arrange(model, recipe, loop)
        vocab_size = config.get_text_config().vocab_size
        self.weights = full_depth(weights_of(model, self.recipe, depth, made, vocab_size), depth)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.trace: Trace | None = None
        self.layers = 0
        self.offloaded: dict[int | None, int] = {}
        self.handed_over: dict[int, Place] = {}  # of each gradient, where autograd hands it to its parameter
        for parameter in self.trainable:
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
        _cast_biases(model)
        _settle_frequencies(model)
        if depth is not None:
            self._mark_layers(without_adapter(model).get_submodule(depth.path))

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

    def micro_batches(self, *, accumulate: bool) -> _MicroBatches:
        """The first of a step, which leaves gradients, and one after it, which adds to them."""
        sections, gradients = self._micro_batch()
        offloaded_bytes = self.offloaded_bytes
        # more than gradients is left where a layer keeps something from one call to the next
        tells = accumulate and living_keys(sections) == set(gradients)
        later = adding(sections, self.handed_over) if tells else None
        for key in gradients:
            _relabel(sections, key, KIND["gradients"])
        first = Extension(sections, self.depth)
        held = [full for key in gradients for _, full in first.full_keys(key)]
        if accumulate and later is None:
            later, _ = self._micro_batch()
        return _MicroBatches(
            first=(first, held),
            rest=None if later is None else (Extension(later, self.depth), []),
            offloaded_bytes=offloaded_bytes,
        )

    def _micro_batch(self) -> tuple[list[Section], list[int]]:
        """(its sections, keys of the gradients that it makes and that outlive it)."""
        recipe = self.recipe
        trace = self.trace = Trace(scratch(self.device), None if self.device.cuda else CPU_RESULTS)
        for tensor in stored_tensors(self.model):
            trace.ignore(tensor)
        for p in self.trainable:
            if p.grad is not None:
                trace.ignore(p.grad)
        recomputed = "activations" if recipe.gradient_checkpointing else None
        kernels = Kernels(self.device, self.backend, packed=recipe.packing)
        self.offloaded, self.handed_over = {}, {}
        with (
            trace,
            kernels,
            _random_states(trace, self.device),
            _host_copies(trace, self.offloaded),
            older_attention(self.loop),
            reference_code(self.model, as_kernels=self.loop.layer_kernels),
        ):
            trace.begin("inputs", kind="inputs")
            batch = self._batch()
            trace.begin("embed", kind="activations")
            kept: list[Any] = []
            if self.loop.output_until != "loss":
                hook = self.model.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
            loss = objective_of(recipe).loss(self.model, batch, recipe, num_trained_tokens=None)
            if self.loop.output_until != "loss":
                hook.remove()
            trace.begin("loss_backward", kind="logits", recomputed=recomputed)
            with trace.autograd():
                _backward(loss)
            trace.begin("end")
            if self.loop.output_until == "loss":
                loss = loss.detach()  # what Trainer.training_step returns: the graph ends here
            gradients = [trace.follow(p.grad) for p in self.trainable if p.grad is not None]
            trace.begin("after")
            kept.clear()
            del loss, batch
        self.trace = None
        return trace.sections, [key for key in gradients if key >= 0]

    def _note_gradient(self, parameter: Any) -> None:
        """Called when autograd has handed a gradient over."""
        assert self.trace is not None
        sections = self.trace.sections
        self.handed_over.setdefault(self.trace.follow(parameter.grad), (len(sections) - 1, len(sections[-1].events)))

    def evaluation(self) -> dict[str, Extension]:
        """The loss of a batch and, on a GPU, the reading of a prompt as long as a row, its keys and values kept.

        On a CPU answers are generated for as many rows as memory is wide, whose prompts are not known here. A prompt is
        left out where the model's cache cannot be rehearsed.
        """
        model, recipe = self.model.eval(), self.recipe

        def loss() -> torch.Tensor:
            batch = self._batch()  # held to the end, as mean_loss of trainer/evaluation/evaluate.py does
            value: torch.Tensor = objective_of(recipe).metrics["loss"](model, batch, recipe, num_trained_tokens=1)
            return value

        try:
            found = {"loss": self._evaluated(loss)}
            if self.device.cuda:
                with suppress(MismatchError, RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                    ids = torch.empty(recipe.micro_batch, recipe.seq_len, dtype=torch.long, device="meta")
                    found["prompt"] = self._evaluated(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
        finally:
            self.model.train()
        return found

    def prompt(self, *, adapter: bool) -> Extension:
        """The reading of prompts that fill the context, as `generate` begins: keys and values of every token are kept.

        adapter: whether it answers, and not the base alone.
        """
        model, recipe = self.model.eval(), self.recipe
        base_alone = model.disable_adapter if not adapter and recipe.method != "full" else nullcontext

        def read() -> Any:
            ids = torch.empty(recipe.micro_batch, recipe.seq_len, dtype=torch.long, device="meta")
            held = ids, torch.ones_like(ids)  # the mask, which tells nothing where prompts are of one length
            return model(input_ids=ids, use_cache=True, logits_to_keep=1), held

        try:
            with base_alone():
                return self._evaluated(read)
        finally:
            self.model.train()

    def _evaluated(self, call: Callable[[], Any]) -> Extension:
        trace = self.trace = Trace(scratch(self.device), None if self.device.cuda else CPU_RESULTS)
        for tensor in (*stored_tensors(self.model), *(p.grad for p in self.trainable if p.grad is not None)):
            trace.ignore(tensor)
        try:
            kernels = Kernels(self.device, self.backend)
            layers = reference_code(self.model, as_kernels=self.loop.layer_kernels)
            with trace, kernels, older_attention(self.loop), layers, torch.no_grad():
                trace.begin("inputs")
                output = call()
                for tensor in _cached(output):
                    _relabel(trace.sections, trace.follow(tensor), KIND["kv_cache"])
                trace.begin("after")
                del output
        finally:
            self.trace = None
        return Extension(trace.sections, self.depth)

    def _batch(self) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = objective_of(self.recipe).dummy_batch(self.recipe, plain=not self.loop.mask)
        return batch


def _backward(loss: torch.Tensor) -> None:
    """loss.backward(), which is a torch function itself and so would run outside of Kernels."""
    run_backward = RUN_BACKWARD.fetch()
    run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _cached(output: Any) -> Iterator[torch.Tensor]:
    """Keys and values, or states, of every layer, in what a model has returned, if it has any."""
    answer = output[0] if isinstance(output, tuple) else output
    cache = getattr(answer, "past_key_values", None)
    for layer in getattr(cache, "layers", ()):
        yield from (value for value in vars(layer).values() if isinstance(value, torch.Tensor) and value.is_meta)


def adding(sections: list[Section], handed_over: dict[int, Place]) -> list[Section]:
    """A micro-batch that finds gradients, from the sections of one that finds none.

    Where the first keeps a gradient, a later one adds it in place to what is there, and drops it.
    """
    later = [replace(section, events=list(section.events), kinds=list(section.kinds)) for section in sections]
    sizes = {key: size for section in sections for key, size in section.events if key in handed_over}
    for key, (number, place) in reversed(handed_over.items()):
        if key in sizes:
            later[number].events.insert(place, (key, -sizes[key]))
    return later


def living_keys(sections: list[Section]) -> set[int]:
    """Of the storages that are made and not dropped."""
    events = [event for section in sections for event in section.events]
    return {key for key, size in events if size > 0} - {key for key, size in events if size < 0}


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

    def found(position_ids: torch.Tensor) -> torch.Tensor | None:
        first = position_ids[:, :1] - 1
        difference = torch.diff(position_ids, prepend=first, dim=-1)
        numbers_BS = (difference != 1).cumsum(-1)
        return numbers_BS if packed else None

    with PACKED_SEQUENCES.replaced_by(found):
        yield


@contextmanager
def _random_states(trace: Trace, device: Device) -> Iterator[None]:
    """Checkpointing keeps the state of the CPU's generator for each layer, which counts where the device is the CPU."""
    if device.cuda:
        yield
        return
    original = torch.get_rng_state

    def followed() -> torch.Tensor:
        state = original()
        trace.follow(state)
        return state

    with RNG_STATE.replaced_by(followed):
        yield


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


# The other phases


def _assemble(
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
    asked = KIND["workspaces"] in load_kinds  # each thread asks for its own, and loading's runs the forwards
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
                if workspace and step == 1 and number == 0 and not (asked and name == "forward"):
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
