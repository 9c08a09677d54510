"""A base larger than the GPU: frozen weights wait in the host's memory and are copied over when their layer runs.

The streamed layers take turns in two places on the GPU: while one computes in the first, the next is copied into the
second. Forwards go up the layers and backwards down, where checkpointing runs each layer again just before its own
backward, so a layer's weights are read only between its entry and that of the layer after. The places are all that a
step needs on the GPU, however many layers are streamed: docs/decisions/0025-streaming.md.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from autoft.errors import ModelError
from autoft.trainer.model.layers import decoder_layers
from autoft.trainer.model.shared_host import SharedHost
from autoft.trainer.recipe import Recipe

PLACES = 2  # one that computes, one that is filled
ALIGNMENT = 512  # bytes, as CUDA's allocator has it


def streamed_numbers(count: int, total: int) -> list[int]:
    """Which of `total` layers wait on the host, spread evenly so that each copy has the most time to hide in."""
    count = min(count, total)
    return [layer for layer in range(total) if (layer + 1) * count // total > layer * count // total]


def room(sizes: Sequence[int]) -> int:
    """Bytes of a place for tensors of these sizes, each beginning at a multiple of ALIGNMENT."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def places(layer_bytes: Sequence[int]) -> list[int]:
    """Bytes of each place. layer_bytes: `room` of each streamed layer, in their order, which take turns."""
    return [max(layer_bytes[first::PLACES]) for first in range(min(PLACES, len(layer_bytes)))]


def copied_bytes(layer_bytes: Sequence[int]) -> tuple[int, int]:
    """What a forward and a backward copy. Each finds in their places the two layers that the pass before ended with."""
    return sum(layer_bytes[PLACES:]), sum(layer_bytes[:-PLACES])


def host_embedding(base: Any, recipe: Recipe) -> torch.nn.Embedding | None:
    """The embedding that is looked up on the host; None where the head shares its weight, or it may get an adapter."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    plain = type(embedding) is torch.nn.Embedding and recipe.target_modules == "all-linear"
    tied = head is not None and head.weight is getattr(embedding, "weight", None)
    return embedding if plain and not tied else None


def stream(base: Any, recipe: Recipe, device: str, shared: SharedHost | None = None) -> Streamed:
    """Move `base`, which was loaded on the host, to `device`: all but the frozen weights of the streamed layers.

    base.streamed is what moves them then.
    shared: where several processes have one copy of the base. The first lends it to the others, whose own has no
    storage: it is on the meta device.

    Raises: ModelError where its layers cannot be told apart, or the first process has others.
    """
    layers = demand_layers(base)
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # of what was packed there
    chosen = [layers[number] for number in streamed_numbers(recipe.streamed_layers, len(layers))]
    streamed = Streamed(chosen, torch.device(device), shared)
    embedding = host_embedding(base, recipe)
    if shared is not None:
        if embedding is not None:
            _share("embeddings", [(embedding, "weight", embedding.weight)], shared)
        waiting = {*streamed.tensors, id(embedding.weight) if embedding is not None else 0}
        _share("the rest", [slot for slot in _tensors(base) if id(slot[2]) not in waiting], shared)
    if embedding is not None:
        look_up_on_host(embedding, torch.device(device))
    _move_the_rest(base, torch.device(device), streamed.tensors)
    base.streamed = streamed
    return streamed


def slow_copies(base: Any) -> str | None:
    """What to know where the host's memory could not be pinned; None where it is, or nothing is streamed."""
    streamed = getattr(base, "streamed", None)
    if streamed is None or streamed.pinned:
        return None
    return (
        "the memory of streamed layers could not be pinned (a limit of the system): copies will be slower than planned"
    )


def look_up_on_host(embedding: Any, device: torch.device) -> None:
    """Leave its weight where it is, out of sight of what asks a model's parameters for their device."""
    embedding.__dict__["weight"] = embedding._parameters.pop("weight").requires_grad_(False)
    look_up = embedding.forward
    embedding.forward = lambda ids: look_up(ids.to("cpu")).to(device)


class Streamed:
    """Layers of a model that share places on a device. tensors: ids of those that live there and on the host."""

    def __init__(
        self, layers: Sequence[torch.nn.Module], device: torch.device, shared: SharedHost | None = None
    ) -> None:
        parts = [list(_weights(layer)) for layer in layers]
        sizes = [room([tensor.nbytes for _, _, tensor in part]) for part in parts]
        self.device = device
        self._places = [torch.empty(size, dtype=torch.uint8, device=device) for size in places(sizes)]
        self._holds: list[int | None] = [None] * len(self._places)
        self._last = -1
        self._host: list[torch.Tensor] = [] if shared is None else shared.buffers("layers", sizes)
        self.tensors: set[int] = set()
        for number, part in enumerate(parts):
            if shared is None:
                self._host.append(torch.empty(sizes[number], dtype=torch.uint8))
            self._put(number, part)
        if shared is not None and shared.first:
            shared.publish("layers", self._host)
        self.pinned = device.type == "cuda" and _pin(self._host, self)
        cuda: Any = torch.cuda
        if device.type == "cuda":
            self._copies = cuda.Stream(device)
            self._arrived = [cuda.Event() for _ in self._places]
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(functools.partial(self._before_forward, number))

    def _put(self, number: int, part: Sequence[tuple[Any, str, torch.Tensor]]) -> None:
        """Copy the tensors of a layer to its host buffer, and leave in their stead what will be in its place."""
        host, place, start = self._host[number], self._places[number % PLACES], 0
        for owner, name, tensor in part:
            own = slice(start, start + tensor.nbytes)
            if tensor.nbytes and not tensor.is_meta:
                host[own].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            there = _set(owner, name, tensor, place[own].view(tensor.dtype).view(tensor.shape))
            self.tensors.add(id(there))
            start += room([tensor.nbytes])

    def _before_forward(self, number: int, layer: Any, _inputs: Any) -> None:
        self._enter(number)
        checkpoint = getattr(layer, "_gradient_checkpointing_func", None)
        if checkpoint is not None and not isinstance(checkpoint, _Entering):
            layer._gradient_checkpointing_func = _Entering(self, number, checkpoint)

    def _enter(self, number: int) -> None:
        """A layer is about to run: have its weights there, and those of the one that comes next on their way."""
        self._copy(number)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).wait_event(self._arrived[number % PLACES])
        if number == self._last:
            return  # where forward turns into backward, the next is there as well
        ahead = number + 1 if number == 0 or number > self._last else number - 1
        self._last = number
        if 0 <= ahead < len(self._host):
            self._copy(ahead)

    def _copy(self, number: int) -> None:
        """Have a layer in its place, once what is queued by now, which may read the one before it, is done."""
        at = number % PLACES
        if self._holds[at] == number:
            return
        self._holds[at] = None
        host, place = self._host[number], self._places[at]
        if self.device.type == "cuda":
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._copies):
                place[: len(host)].copy_(host, non_blocking=True)
                self._arrived[at].record()
        else:
            place[: len(host)].copy_(host)
        self._holds[at] = number


@dataclass(frozen=True, slots=True)
class _Entering:
    """Checkpointing of a streamed layer: when it runs again in the backward, no hook of the layer's own does."""

    streamed: Streamed
    number: int
    checkpoint: Callable[..., Any]

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def entering(*inputs: Any, **named: Any) -> Any:
            self.streamed._enter(self.number)
            return forward(*inputs, **named)

        return self.checkpoint(entering, *args, **kwargs)


def _weights(layer: torch.nn.Module) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """(owner, attribute, tensor) of the weights of a layer, with the scales of packed ones."""
    for module in layer.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            yield module, name, weight
            state: Any = getattr(weight, "quant_state", None)
            if state is not None:
                yield state, "absmax", state.absmax


def _tensors(base: torch.nn.Module) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """(owner, attribute, tensor) of all that a base is made of: weights, quantization states, buffers."""
    for module in base.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            yield module, name, weight
            state: Any = getattr(weight, "quant_state", None)
            for part in filter(None, (state, state.state2) if state is not None else ()):
                for own in ("absmax", "code", "offset"):
                    if getattr(part, own) is not None:
                        yield part, own, getattr(part, own)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer


def _set(owner: Any, name: str, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Have `owner` hold `value` in the stead of `tensor`; a weight with storage stays the object that it is."""
    if not isinstance(tensor, torch.nn.Parameter):
        if isinstance(owner, torch.nn.Module):
            owner._buffers[name] = value
        else:
            setattr(owner, name, value)
        return value
    if not tensor.is_meta:
        tensor.data = value
        return tensor
    made = (
        value.as_subclass(type(tensor)) if type(tensor) is not torch.nn.Parameter else torch.nn.Parameter(value, False)
    )
    made.__dict__.update(tensor.__dict__)
    owner._parameters[name] = made.requires_grad_(tensor.requires_grad)
    return made


def _share(what: str, tensors: Sequence[tuple[Any, str, torch.Tensor]], shared: SharedHost) -> None:
    """Have them lie in memory that all processes see, a weight or buffer that several modules hold once."""
    by_key: dict[Any, torch.Tensor] = {_key(*slot): slot[2] for slot in tensors}
    buffers = shared.buffers(what, [tensor.nbytes for tensor in by_key.values()])
    there = dict(zip(by_key, buffers, strict=True))
    made: dict[Any, torch.Tensor] = {}
    for owner, name, tensor in tensors:
        key = _key(owner, name, tensor)
        if key not in made:
            value = there[key].view(tensor.dtype).view(tensor.shape)
            if shared.first:
                value.copy_(tensor)
            made[key] = _set(owner, name, tensor, value)
        else:
            held = owner._parameters if isinstance(tensor, torch.nn.Parameter) else owner._buffers
            held[name] = made[key]
    if shared.first:
        shared.publish(what, buffers)


def _key(owner: Any, name: str, tensor: torch.Tensor) -> Any:
    """One for all modules that hold a tensor. Quantization states have tensors of their own wherever they run."""
    return id(tensor) if isinstance(owner, torch.nn.Module) else (id(owner), name)


def demand_layers(base: Any) -> torch.nn.ModuleList:
    """The layers of `base`, each with weights of its own. Raises: ModelError where they cannot be streamed."""
    whole = decoder_layers(base)
    if whole is None:
        raise ModelError(f"{type(base).__name__} has no list of layers to stream", fix="leave streamed_layers out")
    _, layers = whole
    inside = [id(weight) for layer in layers for weight in {id(w): w for w in layer.parameters()}.values()]
    modules = {id(module) for layer in layers for module in layer.modules()}
    outside = {
        id(weight) for module in base.modules() if id(module) not in modules for weight in module._parameters.values()
    }
    if len(set(inside)) < len(inside) or outside & set(inside):
        raise ModelError(
            f"layers of {type(base).__name__} share weights, so they cannot be streamed one by one",
            fix="leave streamed_layers out",
        )
    return layers


def _move_the_rest(base: torch.nn.Module, device: torch.device, streamed: set[int]) -> None:
    """Each tensor once, in the order of the modules: a weight, then its quantization state."""
    moved: dict[Any, torch.Tensor] = {}
    for owner, name, tensor in _tensors(base):
        if id(tensor) not in streamed:
            value = moved.setdefault(_key(owner, name, tensor), tensor.detach().to(device))
            _set(owner, name, tensor, value)


def _pin(buffers: Sequence[torch.Tensor], owner: Any) -> bool:
    """Page-lock them, so that copies run beside the arithmetic; False where the system does not let us.

    Not by pin_memory, which rounds each up to a power of two.
    """
    cudart = _cudart()
    pinned = []
    for buffer in buffers:
        if cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0) != cudart.cudaError.success:
            _forget_error()
            break
        pinned.append(buffer)
    weakref.finalize(owner, _unpin, pinned).atexit = False
    return len(pinned) == len(buffers)


def _forget_error() -> None:
    """CUDA keeps the last error until it is asked for it, which a kernel's launch does: let it be one of no account."""
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda").add_(1)


def _unpin(buffers: Sequence[torch.Tensor]) -> None:
    cudart = _cudart()
    for buffer in buffers:
        cudart.cudaHostUnregister(buffer.data_ptr())


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
