"""Many rehearsals at once: forked processes, which share all that has been loaded before."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # processes: each takes some 150 MB of its own, and the planner is to stay under 2 GiB
FEWEST_ITEMS = 4  # for a process to be worth its start

_function: Callable[[Any], Any]


def spread(
    function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False, fewest: int = FEWEST_ITEMS
) -> Iterator[Result]:
    """function(item) of each item, in order. alone: in this process. fewest: items that a process is worth.

    Neighbours go to one process, as they may share what `function` remembers. Alone too where processes do not fork,
    and in a process that was forked for this already.
    Raises: what `function` raises, in its turn.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    processes = min(MOST, cores, len(items) // fewest)
    if alone or processes < 2 or multiprocessing.parent_process() is not None:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(function,)) as executor:
        try:
            yield from executor.map(_call, items, chunksize=-(-len(items) // processes))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    gc.freeze()  # what is shared stays so


def _call(item: Any) -> Any:
    return _function(item)
