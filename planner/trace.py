"""Every allocation of a step, in order: operations on tensors without storage, followed from making to dropping."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# What a storage is for. At a peak the bytes of each kind are told apart.
KINDS = (
    "weights",
    "quantization_state",
    "adapter",
    "gradients",
    "optimizer",
    "inputs",
    "activations",
    "logits",
    "workspaces",
    "temporaries",
)
KIND = {name: number for number, name in enumerate(KINDS)}

Event = tuple[int, int]  # (key, +bytes) makes a storage, (key, -bytes) drops it


@dataclass(slots=True)
class Section:
    """A piece of the step: one layer's forward or backward, or what lies before, between and after the layers.

    events: in order. first_key: of the storages made here, counted on from it. kinds: of these, in the same order.
    flops, moved_bytes: of all its operations. kernels: how many would be launched.
    """

    name: str
    layer: int | None
    first_key: int
    events: list[Event] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    flops: float = 0.0
    moved_bytes: float = 0.0
    kernels: int = 0


class _Life(weakref.ref[Any]):
    __slots__ = ("handle", "key", "size")

    handle: int
    key: int
    size: int


class Trace(TorchDispatchMode):
    """Follows the storages of meta tensors; others are on the host.

    transients: what an operation takes on the real device beside its result, in bytes, by operation.
    """

    def __init__(self, transients: dict[Any, Callable[..., list[int]]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.transients = transients or {}
        self.sections: list[Section] = []
        self._live: dict[int, Any] = {}
        self._keys = 0
        self._kind = KIND["temporaries"]
        self._recomputed_kind: int | None = None
        self.begin("start")

    def begin(
        self, name: str, layer: int | None = None, kind: str = "temporaries", recomputed: str | None = None
    ) -> None:
        """What follows belongs to a new section; its storages are of `kind`.

        recomputed: kind of those made while gradients are being recorded (a backward that computes a forward again).
        """
        self.sections.append(Section(name, layer, self._keys))
        self._kind = KIND[kind]
        self._recomputed_kind = None if recomputed is None else KIND[recomputed]

    def take(self, size: int, kind: int | None = None) -> int:
        """A storage of `size` bytes that no tensor holds; returns its key."""
        section = self.sections[-1]
        key = self._keys
        self._keys += 1
        section.events.append((key, size))
        if kind is None:
            recomputing = self._recomputed_kind is not None and torch.is_grad_enabled()
            kind = self._recomputed_kind if recomputing else self._kind
        assert kind is not None
        section.kinds.append(kind)
        return key

    def drop(self, key: int, size: int) -> None:
        """The end of what `take` took."""
        self.sections[-1].events.append((key, -size))

    def follow(self, tensor: torch.Tensor, kind: str | None = None) -> int:
        """The key of a tensor's storage, which is followed from now on."""
        storage = tensor.untyped_storage()
        handle = storage._cdata
        known = self._live.get(handle)
        if known is not None:
            return int(known.key)
        life: Any = _Life(storage, self._gone)
        life.handle, life.size = handle, max(storage.nbytes(), 1)
        life.key = self.take(life.size, None if kind is None else KIND[kind])
        self._live[handle] = life
        return int(life.key)

    def ignore(self, tensor: torch.Tensor) -> None:
        """The storage of `tensor` is accounted for elsewhere."""
        storage = tensor.untyped_storage()
        life: Any = _Life(storage, self._gone)
        life.handle, life.size, life.key = storage._cdata, 0, -1
        self._live[life.handle] = life

    def live_keys(self) -> list[int]:
        """Keys of the storages that are still there."""
        return [life.key for life in self._live.values() if life.key >= 0]

    def _gone(self, life: Any) -> None:
        known: Any = self._live.get(life.handle)
        if known is life:
            del self._live[life.handle]
            if life.key >= 0:
                self.drop(life.key, life.size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        makes = _MAKES.get(func)
        if makes is None:
            makes = _MAKES[func] = not func.is_view
        if makes:
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                    self.follow(tensor)
            transient = self.transients.get(func)
            if transient is not None:
                taken = [(self.take(size), size) for size in transient(*args, **kwargs)]
                for key, size in taken:
                    self.drop(key, size)
            self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        section = self.sections[-1]
        moved = 0
        for group in (args, result if isinstance(result, (tuple, list)) else (result,)):
            for item in group:
                if isinstance(item, torch.Tensor) and item.is_meta:
                    moved += item.numel() * item.element_size()
                elif isinstance(item, (tuple, list)):
                    moved += sum(
                        t.numel() * t.element_size() for t in item if isinstance(t, torch.Tensor) and t.is_meta
                    )
        if moved:
            section.kernels += 1
            section.moved_bytes += moved
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                section.flops += formula(*args, **kwargs, out_val=result)


_MAKES: dict[Any, bool] = {}
