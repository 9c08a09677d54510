"""Rehearsals in forked processes, which share all that has been loaded before: many at once, or one without a GPU."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from autoft.trainer.runtime.environment import hide_gpus

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # processes: each takes some 150 MB of its own, and the planner is to stay under 2 GiB
PR_SET_PDEATHSIG = 1  # of Linux' prctl(2)
FEWEST_ITEMS = 4  # for a process to be worth its start

_function: Callable[[Any], Any]
_apart = False  # whether this process was forked by `apart`


def beside(function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False) -> Iterator[Result]:
    """function(item) of each item, in order: the first in this process, which remembers it, the others beside it.

    alone, Raises: as `spread`.
    """
    if alone or len(items) < 2 or cores() < 2 or _is_worker():
        yield from map(function, items)
        return
    with _forked(min(cores(), len(items)) - 1, function) as executor:
        others = [executor.submit(_call, item) for item in items[1:]]
        yield function(items[0])
        for other in others:
            yield other.result()


def spread(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    alone: bool = False,
    fewest: int = FEWEST_ITEMS,
    uneven: bool = False,
) -> Iterator[Result]:
    """function(item) of each item, in order. alone: in this process. fewest: items that a process is worth.

    Neighbours go to one process, as they may share what `function` remembers; where items are `uneven` each goes to the
    process that is free first. Alone too where processes do not fork, and in a process that was forked for this
    already.
    Raises: what `function` raises, in its turn.
    """
    processes = min(MOST, cores(), len(items) // fewest)
    if alone or processes < 2 or _is_worker():
        yield from map(function, items)
        return
    with _forked(processes, function) as executor:
        yield from executor.map(_call, items, chunksize=1 if uneven else -(-len(items) // processes))


def apart(function: Callable[[], Result]) -> Result:
    """function(), in a forked process that sees no GPU. In this process where processes do not fork.

    For who trains on a GPU afterwards. The first backward of a process starts its CUDA driver, even on meta tensors:
    autograd counts the devices (torch/csrc/autograd/engine.cpp, start_device_threads). From then on
    CUDA_VISIBLE_DEVICES chooses no GPU, and no forked process can run a backward.
    Raises: what `function` raises.
    """
    if not can_fork():
        return function()
    with _forked(1, lambda _: _without_gpu(function)) as executor:
        answer: Result = executor.submit(_call, None).result()
    return answer


def _without_gpu(function: Callable[[], Result]) -> Result:
    global _apart
    _apart = True
    hide_gpus()
    return function()


def _is_worker() -> bool:
    return multiprocessing.parent_process() is not None and not _apart


def cores() -> int:
    """That processes may be forked for."""
    return len(os.sched_getaffinity(0)) if can_fork() else 1


def can_fork() -> bool:
    """Not where CUDA is at work in this process: a child could run no backward."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return sys.platform == "linux" and not (cuda is not None and cuda.is_initialized())


def end_with_parent(parent: int) -> None:
    """Called in a forked process: it ends when the process that forked it, whose id is given, does so of whatever."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


@contextmanager
def _forked(processes: int, function: Callable[[Any], Any]) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin, initargs=(function, os.getpid())
    ) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    end_with_parent(parent)
    gc.freeze()  # what is shared stays so


def _call(item: Any) -> Any:
    return _function(item)
