"""Several GPUs, each with the whole model: what summing their gradients adds to the memory of a replica."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autoft.planner.rehearsal.layers import as_events
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.tracing.trace import KIND, Made
from autoft.trainer.distributed.group import buffers

_BUFFER = ("summing gradients of all replicas", "trainer/distributed/group.py, Group.sum_gradients")


def gradient_bytes(rehearsal: Rehearsal) -> int:
    """Of all gradients: so much is summed in an optimizer step."""
    return sum(weight.size for weight in rehearsal.weights if weight.trained)


def replicated(rehearsal: Rehearsal) -> Rehearsal:
    """The same run as one of several processes: before an update it copies gradients together, a buffer at a time."""
    trained = [weight for weight in rehearsal.weights if weight.trained]
    sizes: list[int] = []
    made: list[Made] = []
    for numbers in buffers([(weight.dtype, weight.size) for weight in trained]):
        if len(numbers) > 1:  # a single one is summed where it is
            together = [trained[number] for number in numbers]
            sizes.append(sum(weight.size for weight in together))
            made.append((_BUFFER, (sum(weight.params for weight in together),), together[0].dtype))
    num_keys = len(rehearsal.kinds)
    phases, makers = list(rehearsal.phases), list(rehearsal.makers)
    for number, phase in enumerate(phases):
        if phase.name == "optimizer":
            copies = [event for key, size in enumerate(sizes, num_keys) for event in ((key, size), (key, -size))]
            phases[number] = replace(phase, events=np.concatenate((as_events(copies), phase.events)))
            makers.append((num_keys, made))
            num_keys += len(sizes)
    kinds = np.pad(rehearsal.kinds, (0, num_keys - len(rehearsal.kinds)), constant_values=KIND["temporaries"])
    return replace(rehearsal, phases=phases, kinds=kinds, makers=makers)
