"""Work through many items at once, and through fewer where memory runs out: what comes out is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from autoft.trainer.runtime.peak_memory import free_memory, is_out_of_memory

T = TypeVar("T")
Tell = Callable[[str], None]


def silent(_: str) -> None:
    """Tells nobody."""


def in_batches(
    items: Sequence[T], size: Callable[[T], int], work: Callable[[Sequence[T]], None], *, tell: Tell = silent
) -> None:
    """Call `work` with all items, some at a time in their order; it must change nothing before it succeeds.

    size: how many to take together, by the first of them, which should need the most. When memory runs out the batch is
    halved, for all that follow too, and tell is told.
    Raises: what `work` does, when one item alone exhausts memory too.
    """
    start, most = 0, len(items)
    while start < len(items):
        batch = items[start : start + max(1, min(size(items[start]), most))]
        if _fits(work, batch):
            start += len(batch)
            continue
        most = len(batch) // 2
        tell(f"out of memory in the evaluation with {len(batch)} rows at once: it goes on with {most}")
        free_memory()


def _fits(work: Callable[[Sequence[T]], None], batch: Sequence[T]) -> bool:
    """Whether memory was enough; when this returns, the frames that filled it are gone."""
    try:
        work(batch)
    except (RuntimeError, MemoryError, OSError) as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        return False
    return True
