"""Random allocations and frees through PyTorch's own CUDA caching allocator; what it counts after each, as JSON.

    python allocations.py SEED COUNT SETTINGS LIMIT

SETTINGS: as in PYTORCH_CUDA_ALLOC_CONF, "" for none. LIMIT: bytes it may reserve, 0 for all that the card has.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

MIB = 2**20
# (share, smallest, largest) of sizes in bytes: below kSmallSize, below kMinLargeAlloc, above
KINDS = ((0.4, 1, MIB), (0.3, MIB + 1, 10 * MIB), (0.3, 10 * MIB, 300 * MIB))
MOST_LIVE = 120
EMPTY_EVERY = 200  # events, about


def main() -> None:
    seed, count, settings, limit = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    import torch

    if settings:
        torch.cuda.memory._set_allocator_settings(settings)
    torch.cuda.init()
    if limit:
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    torch.cuda.memory._record_memory_history(max_entries=100 * count, context=None)
    events = run(torch, random.Random(seed), count)
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    segments = [(entry["addr"], entry["size"]) for entry in trace if entry["action"] == "segment_alloc"]
    print(json.dumps({"events": events, "segments": segments}), flush=True)


def run(torch: Any, rng: random.Random, count: int) -> list[tuple[str, int, int, list[int], int]]:
    """(what, key, size, counted after it, address) of each event; "full" is an allocation that was refused."""
    live: dict[int, int] = {}  # key -> address
    events = []
    for key in range(count):
        what, size, taken = "malloc", 0, key
        if rng.random() < 1 / EMPTY_EVERY:
            what = "empty"
            torch.cuda.empty_cache()
        elif live and (len(live) >= MOST_LIVE or rng.random() < 0.45):
            what, taken = "free", rng.choice(list(live))
            torch.cuda.caching_allocator_delete(live.pop(taken))
        else:
            size = _size(rng)
            try:
                live[key] = torch.cuda.caching_allocator_alloc(size)
            except torch.OutOfMemoryError:
                what = "full"
        events.append((what, taken, size, _counted(torch), live.get(key, 0)))
    return events


def _size(rng: random.Random) -> int:
    """Some are whole MiB, as those of a model's tensors often are, so that equal ones meet."""
    (_, smallest, largest) = rng.choices(KINDS, [share for share, _, _ in KINDS])[0]
    size = rng.randint(smallest, largest)
    return size if rng.random() < 0.5 else max(512, size // MIB * MIB)


def _counted(torch: Any) -> list[int]:
    """allocated, reserved, requested, the peaks of the first two, retries."""
    stats = torch.cuda.memory_stats()
    names = (
        "allocated_bytes.all.current",
        "reserved_bytes.all.current",
        "requested_bytes.all.current",
        "allocated_bytes.all.peak",
        "reserved_bytes.all.peak",
        "num_alloc_retries",
    )
    return [stats[name] for name in names]


if __name__ == "__main__":
    main()
