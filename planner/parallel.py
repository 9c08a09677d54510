"""Many rehearsals at once: forked processes, which share all that has been loaded before."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # processes: each takes some 150 MB of its own, and the planner is to stay under 2 GiB
FEWEST_ITEMS = 4  # for a process to be worth its start

_function: Callable[[Any], Any]


def beside(function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False) -> Iterator[Result]:
    """function(item) of each item, in order: the first in this process, which remembers it, the others beside it.

    alone, Raises: as `spread`.
    """
    if alone or len(items) < 2 or _cores() < 2 or multiprocessing.parent_process() is not None:
        yield from map(function, items)
        return
    with _forked(min(_cores(), len(items)) - 1, function) as executor:
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
    processes = min(MOST, _cores(), len(items) // fewest)
    if alone or processes < 2 or multiprocessing.parent_process() is not None:
        yield from map(function, items)
        return
    with _forked(processes, function) as executor:
        yield from executor.map(_call, items, chunksize=-(-len(items) // processes))


def _cores() -> int:
    """That processes may be forked for."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


@contextmanager
def _forked(processes: int, function: Callable[[Any], Any]) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(function,)) as executor:
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    gc.freeze()  # what is shared stays so


def _call(item: Any) -> Any:
    return _function(item)
