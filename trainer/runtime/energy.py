"""What the GPUs of a run draw, by the counters that the driver keeps of each card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from autoft.profiles.detect import sampler


@contextmanager
def energy_meter(gpus: Sequence[str]) -> Iterator[Callable[[], float | None]]:
    """A function for the joules that the cards have drawn since it was last asked, or since the block began.

    gpus: as CUDA_VISIBLE_DEVICES names them; none are all that this process sees. The function gives None where a card
    does not tell, as those before Volta, and where there is none.
    """
    with sampler(",".join(gpus) or None) as look:

        def drawn() -> float | None:
            counts = [gpu["energy_j"] for gpu in look()["gpus"]]
            return None if not counts or None in counts else sum(counts)

        last = drawn()

        def take() -> float | None:
            nonlocal last
            before, last = last, drawn()
            return None if before is None or last is None else last - before

        yield take
