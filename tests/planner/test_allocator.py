"""The allocator replay: each rule with numbers worked by hand from PyTorch's source, then any sequence."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoft.planner.memory.allocator import MIB, Allocator, ByteCounter, OutOfMemory, allocation_size, round_up


def allocate(allocator: Allocator, **sizes_mib: float) -> None:
    for key, size in sizes_mib.items():
        allocator.malloc(key, int(size * MIB))


def free(allocator: Allocator, *keys: str) -> None:
    for key in keys:
        allocator.free(key)


# --- sizes


@pytest.mark.parametrize(("size", "block"), [(1, 512), (511, 512), (512, 512), (513, 1024), (MIB - 1, MIB)])
def test_a_block_is_a_multiple_of_512_bytes(size: int, block: int) -> None:
    allocator = Allocator()
    allocator.malloc("a", size)
    assert (allocator.requested, allocator.allocated) == (size, block)


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),  # rounded up to 10 MiB first
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (21 * MIB, 22 * MIB),
    ],
)
def test_a_new_segment_has_the_size_that_its_first_request_calls_for(size: int, segment: int) -> None:
    allocator = Allocator()
    allocator.malloc("a", size)
    assert allocator.reserved == segment == allocation_size(round_up(size, 512))


def test_nothing_is_allocated_for_zero_bytes() -> None:
    for allocator in (Allocator(), ByteCounter()):
        allocator.malloc("a", 0)
        assert (allocator.allocated, allocator.reserved) == (0, 0)
        allocator.free("a")


# --- pools, splitting, best fit, coalescing


def test_small_requests_share_a_segment_and_never_use_a_large_one() -> None:
    allocator = Allocator()
    allocate(allocator, large=2)
    free(allocator, "large")
    allocate(allocator, a=1, b=1)
    assert allocator.reserved == (20 + 2) * MIB
    allocate(allocator, c=0.5)
    assert allocator.reserved == (20 + 2 + 2) * MIB


def test_a_large_request_never_uses_a_small_segment() -> None:
    allocator = Allocator()
    allocate(allocator, a=1, b=1)
    free(allocator, "a", "b")  # 2 MiB free in one block
    allocate(allocator, large=1.5)
    assert allocator.reserved == (2 + 20) * MIB


def test_a_large_block_keeps_a_rest_of_up_to_one_mib() -> None:
    allocator = Allocator()
    allocator.malloc("a", 19 * MIB)  # of 20: the rest of exactly 1 MiB is not split off
    assert allocator.allocated == 20 * MIB
    allocator.free("a")
    allocator.malloc("a", 19 * MIB - 512)
    assert allocator.allocated == 19 * MIB - 512


def test_a_small_block_keeps_no_rest() -> None:
    allocator = Allocator()
    allocate(allocator, a=1)
    allocator.malloc("b", MIB - 512)
    allocator.malloc("c", 512)
    assert allocator.allocated == allocator.reserved == 2 * MIB


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    allocator = Allocator()
    allocate(allocator, a=30, b=24, c=40)
    free(allocator, "a", "b", "c")
    allocate(allocator, x=24, y=30, z=40)  # each its own; any other choice would need a new segment
    assert allocator.reserved == 94 * MIB


def test_of_equal_blocks_the_one_at_the_lower_address_is_taken() -> None:
    """Small segments of one piece of the address space lie above each other, a larger one below what was there."""
    for whole, left in ((20, 20), (40, 52)):
        allocator = Allocator()
        allocate(allocator, whole=whole)
        free(allocator, "whole")
        allocate(allocator, first=12, rest=whole - 12, second=12)  # the second in a segment of its own
        free(allocator, "first", "second")
        allocate(allocator, x=12)
        allocator.empty_cache()
        assert allocator.reserved == left * MIB


@pytest.mark.parametrize(("older_first", "taken"), [(False, "newer"), (True, "older")])
def test_of_equal_blocks_torch_2_13_takes_that_of_the_older_segment(older_first: bool, taken: str) -> None:
    """Segments of 40 MiB lie below each other, so the newer one is the lower."""
    allocator = Allocator(older_first=older_first)
    allocate(allocator, older=40, newer=40)
    places = {name: allocator.address(name) for name in ("older", "newer")}
    assert places["newer"] < places["older"]
    free(allocator, "older", "newer")
    allocate(allocator, again=40)
    assert allocator.address("again") == places[taken]


def test_within_a_segment_the_lower_of_equal_blocks_is_taken_in_every_version() -> None:
    for older_first in (False, True):
        allocator = Allocator(older_first=older_first)
        allocate(allocator, a=5, b=5, c=5, d=5)
        lower = allocator.address("a")
        free(allocator, "c", "a")
        allocate(allocator, x=5)
        assert allocator.address("x") == lower


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_neighbours_are_made_one_when_freed(order: tuple[str, ...]) -> None:
    allocator = Allocator()
    allocate(allocator, a=6, b=6, c=6)  # and 2 MiB left of the segment of 20
    free(allocator, *order)
    allocate(allocator, whole=20)
    assert allocator.reserved == 20 * MIB


def test_a_freed_neighbour_of_a_block_in_use_grows_on_its_own_side() -> None:
    allocator = Allocator()
    allocate(allocator, a=5, b=5, c=5, d=5)
    free(allocator, "a", "b", "d")
    allocate(allocator, x=10)
    assert allocator.reserved == 20 * MIB
    allocate(allocator, y=5)
    assert allocator.reserved == 20 * MIB


def test_empty_cache_gives_back_whole_segments_only() -> None:
    allocator = Allocator()
    allocate(allocator, a=6, b=6, c=30, small=0.5)
    free(allocator, "a", "c", "small")
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (6 * MIB, 20 * MIB)
    free(allocator, "b")
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


# --- statistics


def test_peaks_last_until_they_are_reset() -> None:
    allocator = Allocator()
    allocator.malloc("a", 30 * MIB - 1)
    free(allocator, "a")
    allocator.malloc("a", 100)
    peaks = (allocator.peak_requested, allocator.peak_allocated, allocator.peak_reserved)
    assert peaks == (30 * MIB - 1, 30 * MIB, 32 * MIB)
    allocator.empty_cache()
    allocator.reset_peaks()
    peaks = (allocator.peak_requested, allocator.peak_allocated, allocator.peak_reserved)
    assert peaks == (100, 512, 2 * MIB)


def test_a_key_may_be_used_again_once_it_is_free() -> None:
    allocator = Allocator()
    allocate(allocator, a=1)
    with pytest.raises(AssertionError):
        allocate(allocator, a=1)
    free(allocator, "a")
    allocate(allocator, a=1)
    with pytest.raises(KeyError):
        free(allocator, "b")


# --- the limit


def test_a_limit_may_be_used_up_to_its_last_byte() -> None:
    allocate(Allocator(limit_bytes=40 * MIB), a=20, b=20)
    with pytest.raises(OutOfMemory):
        allocate(Allocator(limit_bytes=40 * MIB - 1), a=20, b=20)


def test_a_small_request_needs_a_whole_segment_under_the_limit() -> None:
    with pytest.raises(OutOfMemory):
        Allocator(limit_bytes=2 * MIB - 1).malloc("a", 1)


def test_the_cache_is_released_before_giving_up() -> None:
    allocator = Allocator(limit_bytes=60 * MIB)
    allocate(allocator, a=20, b=20, c=20)
    free(allocator, "a", "c")
    allocate(allocator, d=40)  # 60 + 40 do not fit; 20 + 40 do
    assert (allocator.retries, allocator.freed_in_retries) == (1, 40 * MIB)
    assert (allocator.reserved, allocator.peak_reserved) == (60 * MIB, 60 * MIB)


def test_a_split_segment_cannot_be_released_and_the_allocation_fails() -> None:
    allocator = Allocator(limit_bytes=62 * MIB)
    allocate(allocator, whole=40)
    free(allocator, "whole")
    allocate(allocator, a=20, b=20, c=20)
    free(allocator, "a", "c")
    with pytest.raises(OutOfMemory) as caught:
        allocator.malloc("d", 30 * MIB - 1)  # 40 + 30 still do not fit once the segment of c is gone
    assert str(caught.value) == "31457279 bytes requested with 20971520 allocated and 41943040 reserved"
    assert (caught.value.requested, caught.value.allocated, caught.value.reserved) == (30 * MIB - 1, 20 * MIB, 40 * MIB)
    assert (allocator.retries, allocator.freed_in_retries) == (1, 20 * MIB)
    allocate(allocator, d=20)  # the key is free, and the block of a is still there
    assert allocator.reserved == 40 * MIB


# --- expandable segments


def test_an_expandable_segment_grows_by_pages_and_continues_free_space() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=12)
    assert allocator.reserved == 20 * MIB
    allocate(allocator, b=12)  # the 8 MiB left, and 4 MiB of one more page
    assert (allocator.allocated, allocator.reserved) == (24 * MIB, 40 * MIB)
    allocate(allocator, c=16)
    assert allocator.allocated == allocator.reserved == 40 * MIB


def test_a_small_expandable_segment_grows_by_2_mib() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=1, b=1, c=0.5)
    assert allocator.reserved == 4 * MIB


def test_an_expandable_block_keeps_no_rest() -> None:
    allocator = Allocator(expandable_segments=True)
    allocator.malloc("a", 20 * MIB - 512)
    assert allocator.allocated == 20 * MIB - 512


def test_empty_cache_unmaps_the_pages_without_a_live_byte() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=10, b=45, c=25)  # b covers half of page 0, all of page 1, three quarters of page 2
    free(allocator, "b")
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (35 * MIB, 60 * MIB)
    allocate(allocator, d=15, e=10)  # the pieces after and before are still there
    assert allocator.reserved == 60 * MIB
    free(allocator, "a", "c", "d", "e")
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_a_page_that_is_not_all_free_stays() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=10, b=20, c=10, d=15, e=5)  # b covers half of page 0 and half of page 1
    free(allocator, "b", "d")
    allocator.empty_cache()
    assert allocator.reserved == 60 * MIB
    allocate(allocator, f=8, g=20)  # f where d was, as b is still one block, g where b was
    assert allocator.reserved == 60 * MIB


def test_an_unmapped_gap_is_filled_before_the_segment_grows() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=10, b=45, c=25)
    free(allocator, "b")
    allocator.empty_cache()
    allocate(allocator, d=45)  # 10 MiB free, 20 MiB mapped anew, 15 MiB free: where b was
    assert allocator.allocated == allocator.reserved == 80 * MIB


def test_a_gap_that_is_too_small_is_left() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=20, b=20, c=20)
    free(allocator, "b")
    allocator.empty_cache()
    allocate(allocator, d=30)
    assert allocator.reserved == (20 + 20 + 40) * MIB


def test_a_block_that_cannot_grow_is_preferred_to_a_smaller_one_that_can() -> None:
    allocator = Allocator(expandable_segments=True)
    allocate(allocator, a=40, b=10)  # 10 MiB left at the growing end
    free(allocator, "a")
    allocate(allocator, c=8)  # goes where a was
    allocate(allocator, d=40)  # so there is no room for another a: 10 MiB left and two pages
    assert allocator.reserved == 100 * MIB


def test_expandable_segments_release_what_a_split_segment_cannot() -> None:
    for expandable in (False, True):
        allocator = Allocator(expandable_segments=expandable, limit_bytes=60 * MIB)
        allocate(allocator, whole=40)
        free(allocator, "whole")
        allocate(allocator, a=20, b=20)
        free(allocator, "a")
        if expandable:
            allocate(allocator, c=30)
            assert (allocator.retries, allocator.freed_in_retries) == (1, 20 * MIB)
            assert allocator.reserved == 60 * MIB
        else:
            with pytest.raises(OutOfMemory):
                allocate(allocator, c=30)


def test_the_pages_of_one_gap_are_mapped_all_or_none() -> None:
    allocator = Allocator(expandable_segments=True, limit_bytes=50 * MIB)
    allocate(allocator, a=20)
    with pytest.raises(OutOfMemory) as caught:
        allocate(allocator, b=40)  # there is memory for one of the two pages
    assert (caught.value.reserved, allocator.peak_reserved, allocator.freed_in_retries) == (20 * MIB, 20 * MIB, 0)


def test_a_gap_stays_mapped_when_the_next_one_cannot_be() -> None:
    allocator = Allocator(expandable_segments=True, limit_bytes=50 * MIB)
    allocate(allocator, a=20, b=20)
    free(allocator, "a")
    allocator.empty_cache()
    free(allocator, "b")  # page 0 unmapped, page 1 free
    with pytest.raises(OutOfMemory):
        allocate(allocator, c=60)  # maps page 0, fails at page 2, releases both and fails again
    assert (allocator.freed_in_retries, allocator.reserved) == (40 * MIB, 0)


# --- the CPU


def test_the_byte_counter_rounds_to_64_bytes_and_caches_nothing() -> None:
    counter = ByteCounter(limit_bytes=256)
    counter.malloc("a", 1)
    counter.malloc("b", 65)
    assert (counter.requested, counter.allocated, counter.reserved) == (66, 192, 192)
    counter.free("b")
    counter.empty_cache()
    assert (counter.requested, counter.allocated, counter.reserved) == (1, 64, 64)
    assert (counter.peak_requested, counter.peak_allocated, counter.peak_reserved) == (66, 192, 192)
    counter.reset_peaks()
    assert (counter.peak_requested, counter.peak_allocated, counter.peak_reserved) == (1, 64, 64)
    counter.malloc("b", 192)
    with pytest.raises(OutOfMemory) as caught:
        counter.malloc("c", 1)
    assert (caught.value.requested, caught.value.allocated, caught.value.reserved) == (1, 256, 256)
    assert (counter.retries, counter.freed_in_retries) == (0, 0)


# --- many events at once


@pytest.mark.parametrize("allocator", [Allocator(), ByteCounter()], ids=["cuda", "cpu"])
def test_events_are_run_in_order_and_the_peak_s_place_is_told(allocator: Allocator | ByteCounter) -> None:
    events = [(1, 128), (2, 30 * MIB), (2, -30 * MIB), (3, 20 * MIB), (1, -128)]
    assert allocator.run(events) == 1
    assert (allocator.requested, allocator.peak_requested) == (20 * MIB, 30 * MIB + 128)
    assert allocator.run([(4, MIB)]) is None
    assert allocator.run([(5, 40 * MIB), (3, -20 * MIB)]) == 0


def test_events_and_single_calls_come_to_the_same() -> None:
    sizes = [512, 9_000, 3 * MIB, 8 * MIB, 45 * MIB] * 40
    events = [(key, size) for key, size in enumerate(sizes)]
    events += [(key, -size) for key, size in enumerate(sizes) if key % 3]
    at_once, single = Allocator(expandable_segments=True), Allocator(expandable_segments=True)
    at_once.run(events)
    for key, size in events:
        if size > 0:
            single.malloc(key, size)
        else:
            single.free(key)
    assert figures(at_once) == figures(single)


# --- any sequence

Steps = list[tuple[str, int]]
SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 2 * MIB),
    st.integers(1, 60 * MIB),
    st.integers(1, 40).map(lambda mib: mib * MIB),
)
# allocate that many bytes; free the n-th live block, counted round; -1: empty the cache
STEPS = st.lists(st.one_of(SIZES.map(lambda size: ("malloc", size)), st.integers(-1, 20).map(lambda n: ("free", n))))
LIMITS = st.none() | st.integers(0, 200 * MIB)


def run(allocator: Allocator | ByteCounter, steps: Steps, first_key: int = 0) -> list[int]:
    """The keys that are live in the end; what does not fit is left out."""
    live: list[int] = []
    for key, (step, value) in enumerate(steps, first_key):
        if step == "malloc":
            try:
                allocator.malloc(key, value)
            except OutOfMemory:
                continue
            live.append(key)
        elif value < 0:
            allocator.empty_cache()
        elif live:
            allocator.free(live.pop(value % len(live)))
    return live


def figures(allocator: Allocator) -> tuple[int, ...]:
    return (allocator.requested, allocator.allocated, allocator.reserved, allocator.retries, allocator.freed_in_retries)


class Watched(Allocator):
    """An allocator that checks after every call what must always hold."""

    limit_bytes: int | None = None

    def malloc(self, key: object, size: int) -> None:
        before = figures(self)
        retries = self.retries
        try:
            super().malloc(key, size)
        except OutOfMemory:
            assert (self.requested, self.allocated) == before[:2]
            assert self.retries == retries + 1
            raise
        finally:
            self.check()
        assert self.allocated - before[1] >= size

    def free(self, key: object) -> None:
        super().free(key)
        self.check()

    def check(self) -> None:
        assert 0 <= self.requested <= self.allocated <= self.reserved
        assert self.requested <= self.peak_requested
        assert self.allocated <= self.peak_allocated <= self.peak_reserved
        assert self.reserved <= self.peak_reserved
        assert self.reserved % (2 * MIB) == 0
        assert self.limit_bytes is None or self.peak_reserved <= self.limit_bytes


@given(steps=STEPS, expandable=st.booleans(), limit=LIMITS, shuffle=st.randoms())
def test_counts_stay_in_order_and_nothing_is_left_over(
    steps: Steps, expandable: bool, limit: int | None, shuffle: Random
) -> None:
    allocator = Watched(expandable_segments=expandable, limit_bytes=limit)
    allocator.limit_bytes = limit
    live = run(allocator, steps)
    shuffle.shuffle(live)
    for key in live:
        allocator.free(key)
    assert (allocator.requested, allocator.allocated) == (0, 0)
    # without expandable segments only a segment that is one block again can go: this is coalescing, too
    allocator.empty_cache()
    assert allocator.reserved == 0


@given(steps=STEPS, after=STEPS, expandable=st.booleans(), limit=LIMITS, shuffle=st.randoms())
def test_the_order_of_frees_does_not_matter(
    steps: Steps, after: Steps, expandable: bool, limit: int | None, shuffle: Random
) -> None:
    results = []
    for shuffled in (False, True):
        allocator = Allocator(expandable_segments=expandable, limit_bytes=limit)
        live = run(allocator, steps)
        gone = live[::2]
        if shuffled:
            shuffle.shuffle(gone)
        for key in gone:
            allocator.free(key)
        run(allocator, after, first_key=len(steps))
        results.append(figures(allocator))
    assert results[0] == results[1]


@given(sizes=st.lists(st.integers(MIB + 1, 60 * MIB), min_size=1), shuffle=st.randoms())
def test_an_expandable_pool_becomes_one_block_again(sizes: list[int], shuffle: Random) -> None:
    allocator = Allocator(expandable_segments=True)
    keys = run(allocator, [("malloc", size) for size in sizes])
    shuffle.shuffle(keys)
    for key in keys:
        allocator.free(key)
    reserved = allocator.reserved
    allocator.malloc("all", reserved)
    assert allocator.reserved == reserved == allocator.peak_reserved


@given(steps=STEPS)
def test_a_limit_matters_from_the_peak_downwards(steps: Steps) -> None:
    endless = Allocator()
    run(endless, steps)
    assume(endless.peak_reserved)
    enough = Allocator(limit_bytes=endless.peak_reserved)
    run(enough, steps)
    assert figures(enough) == figures(endless)
    short = Allocator(limit_bytes=endless.peak_reserved - 1)
    run(short, steps)
    assert short.retries > 0


@given(steps=STEPS, limit=LIMITS)
def test_the_byte_counter_keeps_its_limit_and_leaves_nothing(steps: Steps, limit: int | None) -> None:
    counter = ByteCounter(limit_bytes=limit)
    for key in run(counter, steps):
        assert counter.requested <= counter.allocated == counter.reserved <= counter.peak_reserved
        counter.free(key)
    assert (counter.requested, counter.allocated, counter.reserved) == (0, 0, 0)
    assert limit is None or counter.peak_reserved <= limit
