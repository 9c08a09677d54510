"""Every allocation of a step, in order: operations on tensors without storage, followed from making to dropping."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoft.planner.tracing.op_cache import key_of, learn, recall
from autoft.planner.tracing.work import Kernel, Work, kernels
from autoft.trainer.compat.torch import CURRENT_MODE, NO_MODES, NO_TORCH_FUNCTION, STORAGE_USE_COUNT

current_mode = CURRENT_MODE.fetch()
no_modes = NO_MODES.fetch()
no_torch_function = NO_TORCH_FUNCTION.fetch()
storage_use_count = STORAGE_USE_COUNT.fetch()

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
    "kv_cache",
)
KIND = {name: number for number, name in enumerate(KINDS)}

F = TypeVar("F", bound=Callable[..., Any])
Event = tuple[int, int]  # (key, +bytes) makes a storage, (key, -bytes) drops it
KernelName = tuple[str, str]  # (what it does, where its source is)
# What made a storage: the operation, or the kernel that it stands for (None: neither); shape and dtype of the tensor
# (None: no tensor holds it)
Made = tuple[Any, tuple[int, ...] | None, torch.dtype | None]


@dataclass(slots=True)
class Section:
    """A piece of the step: one layer's forward or backward, or what lies before, between and after the layers.

    events: in order. first_key: of the storages made here, counted on from it. kinds, made: of these, in that order.
    work: of all its operations. before_product: storages made when cuBLAS is first asked for; None: never.
    """

    name: str
    layer: int | None
    first_key: int
    events: list[Event] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    work: Work = field(default_factory=Counter)
    before_product: int | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """What an operation takes on the real device beside its result. sizes: in bytes, from its arguments.

    before: taken before the result is. product: where something is taken, cuBLAS then multiplies it.
    """

    sizes: Callable[..., list[int]]
    before: bool = False
    product: bool = False


class _Life(weakref.ref[Any]):
    __slots__ = ("handle", "key", "size")

    handle: int
    key: int
    size: int


class Trace(TorchDispatchMode):
    """Follows the storages of meta tensors; others are on the host.

    scratch: what an operation takes on the real device beside its result, by operation. results: what it returns
    there, from what it returned here and its arguments, where the two differ.
    """

    def __init__(
        self, scratch: dict[Any, Scratch] | None = None, results: dict[Any, Callable[..., Any]] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scratch = scratch or {}
        self.results = results or {}
        self.sections: list[Section] = []
        self._live: dict[int, Any] = {}
        self._keys = 0
        self.kernel: KernelName | None = None
        self._operation: Any = None
        self._kind = KIND["temporaries"]
        self._recomputed_kind: int | None = None
        self._held_by_a_sum: tuple[int, int] | None = None  # while autograd runs
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

    def take(self, size: int, kind: int | None = None, tensor: torch.Tensor | None = None) -> int:
        """A storage of `size` bytes, that of `tensor` if any holds it; returns its key."""
        section = self.sections[-1]
        key = self._keys
        self._keys += 1
        section.events.append((key, size))
        if kind is None:
            recomputing = self._recomputed_kind is not None and torch.is_grad_enabled()
            kind = self._recomputed_kind if recomputing else self._kind
        assert kind is not None
        section.kinds.append(kind)
        shape, dtype = (None, None) if tensor is None else (tuple(tensor.shape), tensor.dtype)
        section.made.append((self._operation, shape, dtype))
        return key

    def drop(self, key: int, size: int) -> None:
        """The end of what `take` took."""
        self.sections[-1].events.append((key, -size))

    def follow(self, tensor: torch.Tensor, kind: str | None = None) -> int:
        """The key of a tensor's storage, which is followed from now on; -1 for one that is ignored or empty."""
        storage = tensor.untyped_storage()
        handle = storage._cdata
        known = self._live.get(handle)
        if known is not None:
            return int(known.key)
        if storage.nbytes() == 0:
            return -1  # takes nothing on any device
        life: Any = _Life(storage, self._gone)
        life.handle, life.size = handle, storage.nbytes()
        life.key = self.take(life.size, None if kind is None else KIND[kind], tensor)
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and keeping it out costs more than an operation and an import."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with no_torch_function():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not _makes_tensors(func):
            return func(*args, **kwargs)
        if self._is_in_place(func, args):
            return self._run_in_place(func, args, kwargs)
        self._operation = func if self.kernel is None else self.kernel
        key = key_of(func, args, kwargs) if func not in self.results else None
        known = recall(key)
        result = self._result(func, args, kwargs) if known is None else known.again(args)
        scratch = self.scratch.get(func)
        taken: list[tuple[int, int]] = []
        if scratch is not None and scratch.before:
            taken = self._take_scratch(scratch, args, kwargs)
        made = result if isinstance(result, (tuple, list)) else (result,)
        for tensor in reversed(made) if func in _LAST_FIRST else made:
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self.follow(tensor)
        section = self.sections[-1]
        if section.before_product is None and (func in _PRODUCTS or (scratch and scratch.product and taken)):
            section.before_product = len(section.kinds)
        if scratch is not None and not scratch.before:
            taken = self._take_scratch(scratch, args, kwargs)
        for taken_key, size in taken:
            self.drop(taken_key, size)
        self.count(learn(key, func, args, kwargs, result) if known is None else known.kernels)
        self._operation = None
        return result

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation returns on the real device."""
        differs = self.results.get(func)
        if _WRITES[func] and args and _on_meta(args[0]):
            return None  # what only writes into lists of tensors, as the optimizer does, has nothing to write here
        if func in _OF_LISTS and _on_meta(args[0]):
            return [_OF_LISTS[func](tensor) for tensor in args[0]]
        result = func(*args, **kwargs)
        return result if differs is None else differs(result, *args, **kwargs)

    def _is_in_place(self, func: Any, args: Any) -> bool:
        """Whether autograd writes the result into the first argument, so that nothing new is made."""
        if func is torch.ops.aten.add.Tensor:
            return self._adds_in_place(args)
        return func in _WRITTEN_IN_PLACE and self._held_by_a_sum is not None and not torch.is_grad_enabled()

    def _run_in_place(self, func: Any, args: Any, kwargs: Any) -> Any:
        scratch = self.scratch.get(_WRITTEN_IN_PLACE.get(func))
        for own, size in self._take_scratch(scratch, args, kwargs) if scratch else ():
            self.drop(own, size)
        self.count(kernels(func, args, kwargs, args[0]))
        return args[0]

    def _take_scratch(self, scratch: Scratch, args: Any, kwargs: Any) -> list[tuple[int, int]]:
        return [(self.take(size, KIND["temporaries"]), size) for size in scratch.sizes(*args, **kwargs) if size]

    @contextmanager
    def autograd(self) -> Iterator[None]:
        """Inside the block autograd runs backwards, and adds gradients as it does without a mode that looks on."""
        self._held_by_a_sum = _held_by_a_sum()
        try:
            yield
        finally:
            self._held_by_a_sum = None

    def _adds_in_place(self, args: Any) -> bool:
        """Whether autograd adds to a gradient that nobody else holds, for which it takes no new memory.

        can_accumulate_inplace in torch/csrc/autograd/input_buffer.cpp; while a dispatch mode looks on it never does.
        """
        if self._held_by_a_sum is None or torch.is_grad_enabled():
            return False
        first, second = args[0], args[1]
        return (
            isinstance(second, torch.Tensor)
            and _holders(first) == self._held_by_a_sum
            and (first.dtype, first.shape) == (second.dtype, second.shape)
            and _is_dense(first)
        )

    def count(self, launched: Iterable[Kernel]) -> None:
        """The section has run `launched`, on the real device."""
        work = self.sections[-1].work
        for kernel in launched:
            work[kernel] += 1


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether no two of its elements share a place, and no place between them is empty."""
    room = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != room:
                return False
            room *= size
    return True


def _holders(tensor: torch.Tensor) -> tuple[int, int]:
    """How often a tensor and its storage are held."""
    return tensor._use_count(), storage_use_count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


@functools.cache
def _held_by_a_sum() -> tuple[int, int]:
    """How often the first of two gradients is held that autograd adds and nobody else holds, as a Trace sees it."""
    seen: list[tuple[int, int]] = []

    class Look(Trace):  # type: ignore[no-untyped-call]
        def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
            if func is torch.ops.aten.add.Tensor and not torch.is_grad_enabled():
                seen.append(_holders(args[0]))
            return super()._run(func, args, kwargs)

    with no_modes(), torch.enable_grad(), Look():
        x = torch.empty(1, device="meta", requires_grad=True) * 1
        once, twice = x * 2, x * 3
        (once * twice).backward()  # type: ignore[no-untyped-call]
    return seen[-1]


def count(*launched: Kernel) -> None:
    """Kernels of the real device that no operation of the rehearsal stands for; outside of a Trace nothing."""
    trace = current_mode()
    if isinstance(trace, Trace):
        trace.count(launched)


def stands_for(name: str, source: str) -> Callable[[F], F]:
    """What the function makes is made by the kernel of that name on the real device."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def named(*args: Any, **kwargs: Any) -> Any:
            trace = current_mode()
            if not isinstance(trace, Trace):
                return function(*args, **kwargs)
            around, trace.kernel = trace.kernel, (name, source)
            try:
                return function(*args, **kwargs)
            finally:
                trace.kernel = around

        return named  # type: ignore[return-value]

    return wrap


def _on_meta(tensors: Any) -> bool:
    return isinstance(tensors, (tuple, list)) and all(tensor.is_meta for tensor in tensors)


# What is made of each tensor of a list; meta takes these apart
_OF_LISTS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    torch.ops.aten._foreach_sqrt.default: torch.empty_like,
    torch.ops.aten._foreach_norm.Scalar: lambda tensor: tensor.new_empty(()),
}
# What a backward writes into zeros that it has just made, unless a dispatch mode looks on; torch/csrc/autograd/
# FunctionsManual.cpp and aten .../TensorAdvancedIndexing.cpp ask areAnyTensorSubclassLike
_WRITTEN_IN_PLACE = {
    torch.ops.aten.index_put.default: torch.ops.aten._index_put_impl_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.index_add.default: torch.ops.aten.index_add_.default,
}
# What makes its second result first: the mask; aten/native/cuda/Dropout.cu, dropout_cuda
_LAST_FIRST = frozenset((torch.ops.aten.native_dropout.default,))
# Products by cuBLAS
_PRODUCTS = frozenset(
    getattr(getattr(torch.ops.aten, name), form)
    for name in ("mm", "bmm", "addmm", "baddbmm")
    for form in ("default", "out")
)
_MAKES: dict[Any, bool] = {}
_WRITES: dict[Any, bool] = {}


def _makes_tensors(func: Any) -> bool:
    """Whether an operation makes or writes tensors: a view does neither. Its schema is read once."""
    makes = _MAKES.get(func)
    if makes is None:
        makes = _MAKES[func] = not func.is_view
        _WRITES[func] = not func._schema.returns and func._schema.is_mutable
    return makes
