"""What a run takes beside the device's memory: the host's, and the disk's, where load and merge fail first."""

from __future__ import annotations

from autoft.planner.facts import Assumption
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.trainer.storage.run_folder import output_bytes
from autoft.units import GIB, size

# Assumption: Python and the libraries with CUDA's, loaded and initialised.
RUNTIME_BYTES = 3 * GIB
ASSUMPTION = Assumption(
    kind="host",
    basis="assumption",
    text=f"host: Python and its libraries are assumed to take {size(RUNTIME_BYTES)} of RAM beside a GPU",
    figures={"bytes": RUNTIME_BYTES},
)


Parts = dict[str, dict[str, int]]  # of each phase: bytes by what they are for
ONCE = ("the base", "streamed layers, pinned", "embeddings")  # however many processes stream them


def host_parts(rehearsal: Rehearsal, base_params: int, num_gpus: int = 1) -> Parts:
    """RAM of the host, by phase, beside a GPU or several, of which each has a process. One of these saves.

    load: one tensor at a time passes through, or the whole base on its way to where it is streamed from; then each
    layer that gives an adapter its first values. train: paged optimizer state, which the driver moves there when the
    card is full, the checkpoints of a micro-batch that wait there, and the layers that do, which all processes share.
    save: a copy of the adapter, or of a model that is trained itself. merge: the base in 16 bits, and the update of one
    layer in float32.
    """
    widest = max(weight.params for weight in rehearsal.weights)
    adapter = 4 * rehearsal.written_params
    streamed = sum(rehearsal.streamed_bytes)
    waiting = {
        "checkpoints, pinned": rehearsal.offloaded_bytes,
        "streamed layers, pinned": streamed,
        "embeddings": sum(weight.size for weight in rehearsal.weights if weight.on_host) if streamed else 0,
    }
    by_phase = {
        "load": {
            "the largest tensor, 16-bit": 2 * widest,
            **({"the base": _base_bytes(rehearsal)} if streamed else {}),
        },
        "train": {
            "paged optimizer state": rehearsal.managed_bytes,
            **{what: num_bytes for what, num_bytes in waiting.items() if num_bytes},
        },
        "save": {"the adapter, float32": adapter},
        "merge": {
            "the base, 16-bit": 2 * base_params,
            "the adapter, float32": adapter,
            "the update of the largest layer, float32": 4 * widest,
        },
    }
    if _all_trained(rehearsal):
        by_phase["save"] = {"the model": _trained_bytes(rehearsal)}
        del by_phase["merge"]
    if rehearsal.decomposed_bytes:
        by_phase["load"]["the decomposition of the largest layer, float32"] = rehearsal.decomposed_bytes
    runtime, processes = "Python and its libraries, an assumption", {"load": num_gpus, "train": num_gpus}
    return {
        phase: {
            runtime: RUNTIME_BYTES * (1 if phase == "merge" else num_gpus),
            **{what: num_bytes * (1 if what in ONCE else processes.get(phase, 1)) for what, num_bytes in parts.items()},
        }
        for phase, parts in by_phase.items()
    }


def disk_parts(rehearsal: Rehearsal, base_params: int) -> Parts:
    """Room on the disk, by phase. load: the base in 16 bits, where it is not there yet. merge: the same once more."""
    if _all_trained(rehearsal):
        bytes_each = _trained_bytes(rehearsal) // rehearsal.trainable_params
        return {
            "load": {"the base, 16-bit": 2 * base_params},
            "save": {
                "the model and what goes with it": output_bytes(rehearsal.trainable_params, bytes_each=bytes_each)
            },
        }
    return {
        "load": {"the base, 16-bit": 2 * base_params},
        "save": {"the adapter and what goes with it": output_bytes(rehearsal.written_params)},
        "merge": {"the merged model, 16-bit": 2 * base_params},
    }


def _all_trained(rehearsal: Rehearsal) -> bool:
    """Whether the model itself is trained, and nothing is left to merge."""
    return not any(weight.adapter for weight in rehearsal.weights)


def _base_bytes(rehearsal: Rehearsal) -> int:
    """Of the base as it is trained on, packed where it is."""
    return sum(weight.size + sum(weight.state) for weight in rehearsal.weights if not weight.adapter)


def _trained_bytes(rehearsal: Rehearsal) -> int:
    return sum(weight.size for weight in rehearsal.weights if weight.trained)


def totals(parts: Parts) -> dict[str, int]:
    """Bytes of each phase."""
    return {phase: sum(by.values()) for phase, by in parts.items()}
