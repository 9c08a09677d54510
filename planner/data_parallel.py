"""Several GPUs, each with the whole model: what DistributedDataParallel adds to the memory of a replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autoft.planner.depth import as_events
from autoft.planner.ghost import Rehearsal
from autoft.planner.loading import Weight
from autoft.planner.loop import Phase
from autoft.planner.trace import KIND, Event, Made
from autoft.units import MIB

# torch/nn/parallel/distributed.py: states are broadcast in buckets of so much when the model is wrapped;
# BROADCASTS_IN_FLIGHT is max_in_flight of torch/csrc/distributed/c10d/comm.cpp.
BROADCAST_BYTES = 250 * MIB
BROADCASTS_IN_FLIGHT = 2
# Of gradients, the first bucket and all others: _DEFAULT_FIRST_BUCKET_BYTES and _DEFAULT_BUCKET_CAP_MB there
BUCKET_BYTES = (MIB, 25 * MIB)
_BUCKET = ("a bucket of gradients", "torch/csrc/distributed/c10d/reducer.cpp, initialize_buckets")


def gradient_buckets(weights: Iterable[Weight]) -> list[int]:
    """Bytes of each bucket that gradients are summed in, the first to be full first, from the second step on.

    They are filled in the order in which the backward is done with the weights, which is about that of the forward
    turned round. Gradients are kept beside them (gradient_as_bucket_view is off), so together they are a copy.
    """
    trained = [weight for weight in weights if weight.trained]
    return [sum(w.size for w in bucket) for bucket in _buckets(trained[::-1], BUCKET_BYTES)]


def replicated(rehearsal: Rehearsal) -> Rehearsal:
    """The same run under DistributedDataParallel with its defaults, as one of several processes.

    Wrapping the model broadcasts all it stores, packed, and makes one bucket a dtype for all gradients; the forward
    after the first optimizer step makes small ones in their place (Reducer::rebuild_buckets), which overlap with the
    backward. On no other path of a step is anything allocated.
    """
    weights, first_key = rehearsal.weights, len(rehearsal.kinds)
    kinds: list[int] = []
    made: list[Made] = []

    def take(events: list[Event], size: int, kind: str, maker: Made) -> Event:
        kinds.append(KIND[kind])
        made.append(maker)
        events.append((first_key + len(kinds) - 1, size))
        return first_key + len(kinds) - 1, -size

    wrap: list[Event] = []
    flying: list[Event] = []
    for bucket in _buckets(weights, (BROADCAST_BYTES,)):
        if len(flying) == BROADCASTS_IN_FLIGHT:
            wrap.append(flying.pop(0))
        if len(bucket) > 1:  # a single tensor is sent as it is
            flying.append(take(wrap, sum(w.size for w in bucket), "temporaries", (None, None, None)))
    wrap += flying
    trained = [weight for weight in weights if weight.trained]
    drops = []
    for bucket in _buckets(trained, (float("inf"),)):
        elements, dtype = sum(w.params for w in bucket), bucket[0].dtype
        drops.append(take(wrap, sum(w.size for w in bucket), "gradient_buckets", (_BUCKET, (elements,), dtype)))
    rebuild = list(drops)
    for bucket in _buckets(trained[::-1], BUCKET_BYTES):
        elements, dtype = sum(w.params for w in bucket), bucket[0].dtype
        take(rebuild, sum(w.size for w in bucket), "gradient_buckets", (_BUCKET, (elements,), dtype))
    start = next(number for number, phase in enumerate(rehearsal.phases) if phase.name == "forward")
    phases = list(rehearsal.phases)
    last = phases[rehearsal.steady - 1]
    phases[rehearsal.steady - 1] = replace(last, events=np.concatenate((last.events, as_events(rebuild))))
    phases.insert(start, Phase("load", as_events(wrap)))
    return replace(
        rehearsal,
        phases=phases,
        kinds=np.concatenate((rehearsal.kinds, np.array(kinds, dtype=np.int64))),
        steady=rehearsal.steady + 1,
        makers=[*rehearsal.makers, (first_key, made)],
    )


def _buckets(weights: Sequence[Weight], limits: Sequence[float]) -> list[list[Weight]]:
    """Weights of one dtype together until they reach the limit: of the first bucket of a dtype, of the next, and so on.

    compute_bucket_assignment_by_size of torch/csrc/distributed/c10d/reducer.cpp.
    """
    found: list[list[Weight]] = []
    filling: dict[Any, list[Weight]] = {}
    filled: Counter[Any] = Counter()  # bytes, of the bucket that is being filled
    full: Counter[Any] = Counter()  # buckets
    for weight in weights:
        kind = weight.dtype
        filling.setdefault(kind, []).append(weight)
        filled[kind] += weight.size
        if filled[kind] >= limits[min(full[kind], len(limits) - 1)]:
            found.append(filling.pop(kind))
            full[kind] += 1
            filled[kind] = 0
    return [*found, *filling.values()]
