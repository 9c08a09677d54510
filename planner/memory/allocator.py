"""How much memory does an allocator hold while a step allocates and frees? A replay, event by event.

`Allocator` follows PyTorch's CUDA caching allocator, class DeviceCachingAllocator in c10/cuda/CUDACachingAllocator.cpp,
at its default settings: one device, one stream, no graph capture, no max_split_size, no garbage collection threshold.
Each rule names the C++ function it follows. They read the same in the versions before torch 2.6 and of early 2026 that
were compared line by line. `ByteCounter` stands in for it on the CPU.

Of two equal free blocks the lower one is taken, so it matters which addresses the driver hands out, and no source says.
Assumption, see `_Addresses`. From torch 2.13 on (2.13.0, 2.14.0, 2.14.1 were run) the one in the older segment
is (`older_first`; github.com/pytorch/pytorch/pull/183591), wherever segments lie. Yet runs of torch 2.14.0 that were
measured on a Tesla T4 are met to the byte by addresses and missed by up to 9 % by age, so estimates go by addresses;
docs/how-estimates-work.md tells more. None of this matters where segments are expandable: each pool has one then, which
keeps its addresses when it is emptied.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

MIB = 2**20

# c10/core/AllocatorConfig.h in torch 2.13; earlier in CUDACachingAllocator.cpp
MIN_BLOCK = 512  # kMinBlockSize: every size is a multiple of it
SMALL_SIZE = MIB  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer, the default of large_segment_size_mb
MIN_LARGE_SEGMENT_REQUEST = 10 * MIB  # kMinLargeAlloc: from here on a request gets a segment of its own size
SEGMENT_MULTIPLE = 2 * MIB  # kRoundLarge

CPU_ALIGNMENT = 64  # gAlignment, c10/core/alignment.h


class OutOfMemory(Exception):  # noqa: N818 - reads as the sentence it is
    """An allocation did not fit under the limit, not even with the cache released.

    requested: what the caller asked for. allocated, reserved: what the allocator held when it gave up, in bytes.
    """

    def __init__(self, requested: int, allocated: int, reserved: int) -> None:
        super().__init__(f"{requested} bytes requested with {allocated} allocated and {reserved} reserved")
        self.requested = requested
        self.allocated = allocated
        self.reserved = reserved


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not below size."""
    return -(-size // multiple) * multiple


class _Statistics:
    """What both allocators count, in bytes, under PyTorch's names (`torch.cuda.memory_stats`).

    allocated: of live blocks, each with what its rounding added. reserved: taken from the device. requested: of live
    requests, before rounding. peak_*: the highest since the last reset. retries: allocations that had to release the
    cache first, failed ones included (num_alloc_retries). freed_in_retries: what these released; PyTorch has no such
    figure.
    """

    __slots__ = (
        "_limit",
        "allocated",
        "freed_in_retries",
        "peak_allocated",
        "peak_requested",
        "peak_reserved",
        "requested",
        "reserved",
        "retries",
    )

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit: float = float("inf") if limit_bytes is None else limit_bytes
        self.allocated = self.reserved = self.requested = 0
        self.retries = self.freed_in_retries = 0
        self.reset_peaks()

    def reset_peaks(self) -> None:
        """Start the peaks anew from what is held now, as `torch.cuda.reset_peak_memory_stats` does."""
        self.peak_allocated = self.allocated
        self.peak_reserved = self.reserved
        self.peak_requested = self.requested


class _Block:
    """A range of one segment: in use, free, or (expandable segments) address space without memory behind it.

    prev, next: its neighbours in the segment; None at the ends. age: of its segment, a number that grows.
    """

    __slots__ = ("address", "age", "in_use", "mapped", "next", "prev", "requested", "size")

    def __init__(
        self,
        address: int,
        size: int,
        age: int,
        prev: _Block | None = None,
        next: _Block | None = None,
        mapped: bool = True,
    ) -> None:
        self.address = address
        self.size = size
        self.age = age
        self.requested = 0
        self.in_use = False
        self.mapped = mapped
        self.prev = prev
        self.next = next
        if prev is not None:
            prev.next = self
        if next is not None:
            next.prev = self

    def expandable_size(self) -> int:
        """What the block could grow to if the address space behind it were mapped."""
        after = self.next
        return self.size + after.size if after is not None and not after.mapped else self.size


class Addresses(Protocol):
    """Where the driver puts segments."""

    def reserve(self, size: int, multiple: int) -> int:
        """The address of a new segment, a multiple of `multiple`."""


class _Addresses:
    """Where cudaMalloc puts its segments on Linux.

    Inferred, not documented: memory for them is reserved in the process's address space from the top down, as mmap does
    it, in pieces of 32 MiB that smaller segments share and that larger ones have to themselves. Of the eight 16-bit
    runs in tests/validation/t4.jsonl it meets reserved memory to the byte in all; ascending addresses miss two by 6 and
    9 %, descending ones without shared pieces one by 0.3 %.
    """

    PIECE = 32 * MIB

    __slots__ = ("_lowest", "_pieces")

    def __init__(self) -> None:
        self._lowest = 2**47
        self._pieces: list[tuple[int, int]] = []  # (first free address, end)

    def reserve(self, size: int, multiple: int) -> int:
        """The address of a new segment, a multiple of `multiple`."""
        if size >= self.PIECE:
            self._lowest = (self._lowest - size) // multiple * multiple
            return self._lowest
        for number, (address, end) in enumerate(self._pieces):
            if address + size <= end:
                self._pieces[number] = (address + size, end)
                return address
        self._lowest -= self.PIECE
        self._pieces.append((self._lowest + size, self._lowest + self.PIECE))
        return self._lowest


class _Segments:
    """New segments: where each lies, and its age, a number that grows; 0 for all where ages do not count.

    registration_counter in torch 2.13.
    """

    __slots__ = ("_addresses", "_made", "_older_first")

    def __init__(self, addresses: Addresses, *, older_first: bool) -> None:
        self._addresses = addresses
        self._older_first = older_first
        self._made = 0

    def add(self, size: int, multiple: int) -> tuple[int, int]:
        """(address, age) of one more."""
        self._made += self._older_first
        return self._addresses.reserve(size, multiple), self._made


class _Pool:
    """The free and the unmapped blocks of one pool (struct BlockPool).

    free: (size, age, address, block), in the order of BlockComparatorSizeCounterAddress. unmapped: (address, block), in
    the order of BlockComparatorAddress. page: what an expandable segment grows by. min_rest: the smallest rest that is
    split off a block.
    """

    __slots__ = ("_addresses", "free", "min_rest", "page", "unmapped")

    def __init__(self, page: int, min_rest: int, addresses: _Segments) -> None:
        self._addresses = addresses
        self.page = page
        self.min_rest = min_rest
        self.free: list[tuple[int, int, int, _Block]] = []
        self.unmapped: list[tuple[int, _Block]] = []

    def add_segment(self, size: int, mapped: bool) -> _Block:
        address, age = self._addresses.add(size, SEGMENT_MULTIPLE if mapped else self.page)
        return _Block(address, size, age, mapped=mapped)

    def remove(self, block: _Block) -> None:
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.age, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def insert(self, block: _Block) -> None:
        """Take a block back, made one with its free neighbours; try_merge_blocks. Only like merges with like."""
        mapped, before, after = block.mapped, block.prev, block.next
        if before is not None and not before.in_use and before.mapped == mapped:
            self.remove(before)
            block.address = before.address
            block.size += before.size
            before = block.prev = before.prev
            if before is not None:
                before.next = block
        if after is not None and not after.in_use and after.mapped == mapped:
            self.remove(after)
            block.size += after.size
            after = block.next = after.next
            if after is not None:
                after.prev = block
        if mapped:
            insort(self.free, (block.size, block.age, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))


class Allocator(_Statistics):
    """PyTorch's CUDA caching allocator, fed with sizes in place of tensors.

    expandable_segments: as in PYTORCH_CUDA_ALLOC_CONF; each pool is one growing range of addresses, mapped by the page.
    limit_bytes: memory the device can give to this allocator; None is endless. Without expandable segments a fraction
    set by set_per_process_memory_fraction acts the same. With them it does not quite: alloc_block compares the segment
    that get_allocation_size names, not the pages to be mapped, with the fraction, which is up to a page off.
    addresses: where new segments lie; None is as on Linux. older_first: of two equal free blocks that of the older
    segment is taken, as torch 2.13 and later do, and only within one segment the lower.
    """

    __slots__ = ("_address_space", "_expandable", "_large", "_live", "_small")

    def __init__(
        self,
        *,
        expandable_segments: bool = False,
        limit_bytes: int | None = None,
        addresses: Addresses | None = None,
        older_first: bool = False,
    ) -> None:
        super().__init__(limit_bytes)
        self._expandable = expandable_segments
        # should_split: above 1 MiB only a rest of more than 1 MiB is split off, unless segments are expandable
        segments = _Segments(_Addresses() if addresses is None else addresses, older_first=older_first)
        rest = MIN_BLOCK if expandable_segments else SMALL_SIZE + 1
        self._small = _Pool(page=SMALL_SEGMENT, min_rest=MIN_BLOCK, addresses=segments)
        self._large = _Pool(page=LARGE_SEGMENT, min_rest=rest, addresses=segments)
        # ExpandableSegment: 1 1/8 of the device's memory, for which the limit stands in
        self._address_space = 2**60 if limit_bytes is None else max(limit_bytes, 1) * 9 // 8
        self._live: dict[Hashable, _Block | None] = {}

    def malloc(self, key: Hashable, size: int) -> None:
        """Allocate size bytes under a key that is not in use; DeviceCachingAllocator::malloc.

        A size of 0 gets no memory (NativeCachingAllocator::allocate) and is freed like any other.
        Raises: OutOfMemory; the cache has been released then, and the key stays free.
        """
        assert key not in self._live
        if size == 0:
            self._live[key] = None
        else:
            self.run(((key, size),))

    def free(self, key: Hashable) -> None:
        """Free what malloc allocated under the key: back to its pool, never to the device; free_block."""
        if self._live[key] is None:
            del self._live[key]
        else:
            self.run(((key, -1),))

    def run(self, events: Iterable[tuple[Hashable, int]]) -> int | None:
        """malloc of (key, +size) and free of (key, -size), one after another; no size is 0.

        Written out in one loop, since a step has tens of thousands of them.
        Returns the place of the event that took allocated to a new peak, None where none did. Raises: OutOfMemory.
        """
        live, small, large = self._live, self._small, self._large
        allocated, peak, requested, peak_requested = (
            self.allocated, self.peak_allocated, self.requested, self.peak_requested,
        )  # fmt: skip
        highest = None
        try:
            for place, (key, size) in enumerate(events):
                if size < 0:
                    block: Any = live.pop(key)
                    allocated -= block.size
                    requested -= block.requested
                    block.in_use = False
                    (small if block.requested <= SMALL_SIZE else large).insert(block)
                    continue
                rounded = (size + MIN_BLOCK - 1) & -MIN_BLOCK  # round_size
                pool = small if rounded <= SMALL_SIZE else large
                free = pool.free
                at = bisect_left(free, (rounded,))
                if at < len(free):
                    after = free[at][3].next
                    if after is not None and not after.mapped:
                        at = _prefer_less_expandable(pool, at)
                    block = free.pop(at)[3]
                else:
                    block = self._reserve(pool, rounded, size, allocated)
                block.in_use = True
                block.requested = size
                rest = block.size - rounded
                if rest >= pool.min_rest:  # alloc_found_block; the rest has no free neighbour, so needs no merging
                    tail = _Block(block.address + rounded, rest, block.age, block, block.next)
                    insort(free, (rest, tail.age, tail.address, tail))
                    block.size = rounded
                live[key] = block
                requested += size
                allocated += block.size
                if allocated > peak:
                    peak, highest = allocated, place
                if requested > peak_requested:
                    peak_requested = requested
        finally:
            self.allocated, self.peak_allocated = allocated, peak
            self.requested, self.peak_requested = requested, peak_requested
        return highest

    def address(self, key: Hashable) -> int:
        """Where the block of a live key begins."""
        block = self._live[key]
        return 0 if block is None else block.address

    def empty_cache(self) -> None:
        """Give free memory back to the device; release_cached_blocks.

        Whole segments only: a block that was split stays while a part of it is in use. Of expandable segments every
        page without a live byte goes.
        """
        for pool in (self._large, self._small):
            if self._expandable:
                for *_, block in tuple(pool.free):
                    self._unmap(pool, block)
            else:
                whole = [size for size, *_, block in pool.free if block.prev is None and block.next is None]
                pool.free[:] = [entry for entry in pool.free if entry[3].prev is not None or entry[3].next is not None]
                self.reserved -= sum(whole)

    def _reserve(self, pool: _Pool, rounded: int, size: int, allocated: int) -> _Block:
        """A block of new memory; after a first failure once more with the cache released. The second half of malloc.

        Of the source's steps in between, free_memory_callbacks frees only what other processes shared, and
        garbage_collect_cached_blocks and release_available_cached_blocks do nothing without their settings.
        """
        take = self._expand if self._expandable else self._add_segment
        block = take(pool, rounded)
        if block is None:
            reserved = self.reserved
            self.empty_cache()
            self.freed_in_retries += reserved - self.reserved
            self.retries += 1
            block = take(pool, rounded)
        if block is None:
            raise OutOfMemory(size, allocated, self.reserved)
        return block

    def _take_from_device(self, size: int) -> bool:
        if self.reserved + size > self._limit:
            return False
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved
        return True

    def _add_segment(self, pool: _Pool, rounded: int) -> _Block | None:
        """A segment by cudaMalloc; alloc_block. None: the device has not enough."""
        size = allocation_size(rounded)
        return pool.add_segment(size, mapped=True) if self._take_from_device(size) else None

    def _expand(self, pool: _Pool, rounded: int) -> _Block | None:
        """Map pages until a free block of the size exists; try_allocate_expandable_block.

        None: the device has not enough. What was mapped until then stays.
        """
        block = self._find_expandable(pool, rounded)
        if not block.mapped and not self._map(pool, block, min(block.size, rounded)):
            return None
        while block.size < rounded:
            gap = block.next
            assert gap is not None
            if not self._map(pool, gap, min(gap.size, rounded - block.size)):
                return None
            block = gap  # it took in the block before it
        pool.remove(block)
        return block

    def _find_expandable(self, pool: _Pool, rounded: int) -> _Block:
        """The lowest run of free and unmapped blocks that has room, else a new segment; find_expandable_block."""
        for _, gap in pool.unmapped:
            first = gap.prev if gap.prev is not None and not gap.prev.in_use else gap
            if _has_room(first, rounded):
                return first
        segment = pool.add_segment(round_up(self._address_space, pool.page), mapped=False)
        pool.insert(segment)
        return segment

    def _map(self, pool: _Pool, gap: _Block, size: int) -> bool:
        """Put memory behind the first pages of an unmapped block, all or none; map_block."""
        mapped = round_up(size, pool.page)
        if not self._take_from_device(mapped):
            return False
        pool.remove(gap)
        gap.mapped = True
        if mapped < gap.size:
            rest = _Block(gap.address + mapped, gap.size - mapped, gap.age, gap, gap.next, mapped=False)
            gap.size = mapped
            pool.insert(rest)
        pool.insert(gap)
        return True

    def _unmap(self, pool: _Pool, block: _Block) -> None:
        """Take the memory from all pages that lie whole within a free block; unmap_block."""
        begin = round_up(block.address, pool.page)
        end = (block.address + block.size) // pool.page * pool.page
        if begin >= end:
            return
        pool.remove(block)
        block.mapped = False
        if block.address < begin:
            pool.insert(_Block(block.address, begin - block.address, block.age, block.prev, block))
        if end < block.address + block.size:
            pool.insert(_Block(end, block.address + block.size - end, block.age, block, block.next))
        block.address, block.size = begin, end - begin
        pool.insert(block)
        self.reserved -= end - begin


class ByteCounter(_Statistics):
    """The CPU's side: every allocation goes to the system and comes back from it at once (c10/core/impl/alloc_cpu.cpp).

    Leaves out what malloc itself adds. limit_bytes: as for Allocator; there is no cache to release, so no retries.
    """

    __slots__ = ("_live",)

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        super().__init__(limit_bytes)
        self._live: dict[Hashable, int] = {}

    def malloc(self, key: Hashable, size: int) -> None:
        """Allocate size bytes under a key that is not in use. Raises: OutOfMemory; nothing has changed then."""
        assert key not in self._live
        allocated = self.allocated + round_up(size, CPU_ALIGNMENT)
        if allocated > self._limit:
            raise OutOfMemory(size, self.allocated, self.reserved)
        self._live[key] = size
        self.requested += size
        self.allocated = self.reserved = allocated
        if allocated > self.peak_allocated:
            self.peak_allocated = self.peak_reserved = allocated
        if self.requested > self.peak_requested:
            self.peak_requested = self.requested

    def free(self, key: Hashable) -> None:
        """Free what malloc allocated under the key."""
        size = self._live.pop(key)
        self.requested -= size
        self.allocated = self.reserved = self.allocated - round_up(size, CPU_ALIGNMENT)

    def run(self, events: Iterable[tuple[Hashable, int]]) -> int | None:
        """As Allocator's."""
        highest = None
        for place, (key, size) in enumerate(events):
            if size < 0:
                self.free(key)
                continue
            before = self.peak_allocated
            self.malloc(key, size)
            if self.peak_allocated > before:
                highest = place
        return highest

    def empty_cache(self) -> None:
        """Nothing is cached."""


def allocation_size(rounded: int) -> int:
    """Bytes of the segment that is reserved for a request without a fitting block; get_allocation_size."""
    if rounded <= SMALL_SIZE:
        return SMALL_SEGMENT
    if rounded < MIN_LARGE_SEGMENT_REQUEST:
        return LARGE_SEGMENT
    return round_up(rounded, SEGMENT_MULTIPLE)


def _has_room(block: _Block | None, size: int) -> bool:
    """Do the free and unmapped blocks from this one on cover the size?"""
    room = 0
    while room < size and block is not None and not block.in_use:
        room += block.size
        block = block.next
    return room >= size


def _prefer_less_expandable(pool: _Pool, at: int) -> int:
    """Best fit among expandable blocks, from the smallest that is large enough on; get_free_block.

    A block with unmapped space behind it counts with what it can grow to, so a larger block that cannot grow as far
    goes first. One without is never passed over.
    """
    free = pool.free
    while at + 1 < len(free) and free[at + 1][3].expandable_size() < free[at][3].expandable_size():
        at += 1
    return at
