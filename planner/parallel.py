"""Many rehearsals at once: forked processes, which share all that has been loaded before."""

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

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # processes: each takes some 150 MB of its own, and the planner is to stay under 2 GiB
PR_SET_PDEATHSIG = 1  # of Linux' prctl(2)
FEWEST_ITEMS = 4  # for a process to be worth its start

_function: Callable[[Any], Any]


def beside(function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False) -> Iterator[Result]:
    """function(item) of each item, in order: the first in this process, which remembers it, the others beside it.

    alone, Raises: as `spread`.
    """
    if alone or len(items) < 2 or cores() < 2 or multiprocessing.parent_process() is not None:
        yield from map(function, items)
        return
    with _forked(min(cores(), len(items)) - 1, function) as executor:
        others = [executor.submit(_call, item) for item in items[1:]]
        yield function(items[0])
        for other in others:
            yield other.result()


def spread(
    function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False, fewest: int = FEWEST_ITEMS
) -> Iterator[Result]:
    """function(item) of each item, in order. alone: in this process. fewest: items that a process is worth.

    Neighbours go to one process, as they may share what `function` remembers. Alone too where processes do not fork,
    and in a process that was forked for this already.
    Raises: what `function` raises, in its turn.
    """
    processes = min(MOST, cores(), len(items) // fewest)
    if alone or processes < 2 or multiprocessing.parent_process() is not None:
        yield from map(function, items)
        return
    with _forked(processes, function) as executor:
        yield from executor.map(_call, items, chunksize=-(-len(items) // processes))


def cores() -> int:
    """That processes may be forked for."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


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
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    end_with_parent(parent)
    gc.freeze()  # what is shared stays so


def _call(item: Any) -> Any:
    return _function(item)
