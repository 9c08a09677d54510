"""The step with the most memory, before an hour is spent on the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.trainer.runtime.peak_memory import PeakMemory
from autoft.trainer.storage.checkpoint import Checkpoint
from autoft.units import size

if TYPE_CHECKING:
    from autoft.trainer.loop.engine import Engine

MARGIN = 0.01  # of the device's memory that the largest step has to leave: what an estimate may be off


def rehearse(engine: Engine, checkpoint: Checkpoint, memory: PeakMemory) -> tuple[int, int]:
    """(padded tokens of the longest micro-batch, bytes held at most in a step of it).

    All is afterwards as `checkpoint` has it, by the way that a resumed run takes, with the fallbacks that memory asks
    for, of this process or another.
    Raises: OutOfMemory, NonFinite.
    """
    while True:
        memory.take_peak()
        tokens = engine.rehearse()
        peak = memory.take_peak()
        left, total = memory.headroom(peak)
        left += engine.paged_bytes
        engine.restore(checkpoint)
        if left >= MARGIN * total or not engine.take_fallback_for_want(
            f"the step leaves {size(left)} of {size(total)}"
        ):
            break
    engine.agree_on_fallbacks()
    return tokens, peak
