"""The most that fits, found over few rehearsals: more of a quantity never needs less memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

OUTWARDS = 16  # a guess goes at most this many times as far as the last answer: the far end is slow to rehearse


def largest(
    values: Sequence[int],
    need: Callable[[int], int],
    room: int,
    *,
    near: int = 0,
    rise: Callable[[int], float] | None = None,
) -> int:
    """The place in `values` of the largest one that needs no more than `room`; -1 where none does.

    values: ascending. need: bytes; asked of few values, always of the place returned and of the one after it.
    near: place to ask first, as where a similar recipe ended. rise: of the first value that is asked, about how many
    bytes one more of it takes, which leads to the second. Then the next is the place where a straight line through the
    two answers nearest to `room` crosses it; the middle, once two guesses between two answers have left more than half
    each.
    """
    last = len(values) - 1
    fits, fails = -1, last + 1  # everything up to `fits` is known to fit, nothing from `fails` on
    needs: dict[int, int] = {}
    wide = 0  # guesses in a row that left more than half of the places between the two
    place = min(near, last)
    while True:
        needs[place] = need(values[place])
        width = fails - fits
        if needs[place] <= room:
            fits = place
        else:
            fails = place
        if fails - fits <= 1:
            return fits
        wide = wide + 1 if fits in needs and fails in needs and 2 * (fails - fits) > width else 0
        crossing = _crossing(needs, room)
        if wide > 1:
            place, wide = (fits + fails) // 2, 0
        elif crossing is not None:
            place = crossing
        elif len(needs) == 1 and rise is not None and (slope := rise(values[place])) > 0:
            place = bisect_right(values, values[place] + (room - needs[place]) / slope) - 1
        elif len(needs) == 1 and near > 0:
            close_by = 1 + place // 16
            place += close_by if fits == place else -close_by
        else:
            place = OUTWARDS * (fits + 1) if fits in needs else 0
        place = max(fits + 1, min(place, fails - 1, OUTWARDS * (max(needs) + 1)))


def _crossing(needs: dict[int, int], room: int) -> int | None:
    """The last place below the crossing of `room` by a line through the two answers on either side of it, else through
    the two nearest to it. None where no line crosses it.
    """
    places = sorted(needs)
    fitting = sum(needs[place] <= room for place in places)  # more never needs less: these come first
    if len(places) < 2:
        return None
    first = min(max(fitting - 1, 0), len(places) - 2)
    low, high = places[first : first + 2]
    rise = needs[high] - needs[low]
    return low + int((room - needs[low]) * (high - low) / rise) if rise > 0 else None
