"""The most that fits, found over few rehearsals: more of a quantity never needs less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def largest(values: Sequence[int], need: Callable[[int], int], room: int) -> int:
    """The place in `values` of the largest one that needs no more than `room`; -1 where none does.

    values: ascending. need: bytes; asked of few values, always of the found one and of the one after it.
    The next to be asked is where a straight line through the two last ones crosses `room`: outwards at most eight times
    as far, since the far end is slow to rehearse; inwards the middle, once a guess has left more than half.
    """
    last = len(values) - 1
    fits, needs_at_fits = 0, need(values[0])
    if needs_at_fits > room:
        return -1
    fails: int | None = None
    needs_at_fails = slope = 0.0
    halve = False
    while fits < last if fails is None else fails - fits > 1:
        if fails is None:
            crossing = fits + int((room - needs_at_fits) / slope) if slope > 0 else fits + 1
            guess = min(max(crossing, fits + 1), 8 * (fits + 1), last)
        else:
            share = 0.5 if halve else (room - needs_at_fits) / (needs_at_fails - needs_at_fits)
            guess = min(max(fits + int(share * (fails - fits)), fits + 1), fails - 1)
        needs = need(values[guess])
        width = None if fails is None else fails - fits
        if needs <= room:
            slope = (needs - needs_at_fits) / (guess - fits)
            fits, needs_at_fits = guess, needs
        else:
            fails, needs_at_fails = guess, needs
        halve = width is not None and fails is not None and 2 * (fails - fits) > width
    return fits
