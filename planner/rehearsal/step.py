"""One micro-batch of a step, an evaluation or a prompt, traced on tensors without storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from autoft.planner.kernels.attention import Backend
from autoft.planner.kernels.dispatch import CPU_RESULTS, Kernels, scratch
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.assembly import Assembly
from autoft.planner.rehearsal.layers import (
    Depth,
    Extension,
    MismatchError,
)
from autoft.planner.rehearsal.loading import (
    full_depth,
    stored_tensors,
    weights_of,
)
from autoft.planner.rehearsal.loop import Loop
from autoft.planner.rehearsal.older import arrange, older_attention
from autoft.planner.tracing.reference_code import reference_code
from autoft.planner.tracing.trace import KIND, Section, Trace
from autoft.trainer.compat.torch import RNG_STATE, RUN_BACKWARD
from autoft.trainer.compat.transformers import PACKED_SEQUENCES
from autoft.trainer.model import offload
from autoft.trainer.model.build import build_model, without_adapter
from autoft.trainer.objectives import objective_of
from autoft.trainer.recipe import Recipe

Place = tuple[int, int]  # (number of a section, that of an event there)


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """The first micro-batch of a step and any later one; None where there is one. offloaded_bytes: of one."""

    first: tuple[Extension, list[int]]
    rest: tuple[Extension, list[int]] | None
    offloaded_bytes: int


class Step:
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

    def of(self, recipe: Recipe) -> Step:
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

    def micro_batches(self, *, accumulate: bool) -> MicroBatches:
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
        return MicroBatches(
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
            evaluated = {"loss": self._evaluated(loss)}
            if self.device.cuda:
                with suppress(MismatchError, RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                    ids = torch.empty(recipe.micro_batch, recipe.seq_len, dtype=torch.long, device="meta")
                    evaluated["prompt"] = self._evaluated(
                        lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)
                    )
        finally:
            self.model.train()
        return evaluated

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
def real_masks(*, packed: bool) -> Iterator[None]:
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

    real = offload.to_host, offload.to_device
    offload.to_host, offload.to_device = to_host, to_device  # type: ignore[assignment]
    try:
        yield
    finally:
        offload.to_host, offload.to_device = real
