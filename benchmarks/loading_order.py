"""What loading leaves to chance: measured runs under many orders of loading, and what a predictable loop is worth.

    python benchmarks/loading_order.py

transformers 5.0 reads weights with four threads while the main thread quantizes them; a race decides the order. Each
seed is one such race. No figure of the measured rows goes into it.
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from common import write_results
from measured_runs import ROWS, rehearsed

from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of
from autoft.planner.memory.allocator import Allocator
from autoft.planner.memory.replay import replay
from autoft.planner.plan.cases import Case, estimates, read_cases
from autoft.planner.rehearsal.layers import Ints, pairs
from autoft.planner.rehearsal.loop import Phase
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.search.parallel import spread
from autoft.planner.tracing.trace import KIND
from autoft.profiles.detect import detect
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_config, resolve

FILES = ("t4.jsonl", "rtx4080.jsonl")  # those that tell what was reserved
SEEDS = 50
WORKERS = 4  # GLOBAL_WORKERS of transformers/core_model_loading.py, on four cores or more
# Whether 16-bit weights that are to be quantized are read by threads: the same file of these versions
THREADS = {"5.0.0": True, "5.8.1": False, "5.17.0": False}
GPU = "rtx-4080"
STEPS = 24  # of different lengths
RECIPES = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {"method": "qlora", "quant_type": "nf4", "optimizer": "adamw_torch"},
    "Qwen/Qwen2.5-0.5B-Instruct": {"method": "lora", "optimizer": "adamw_torch"},
}
Pair = tuple[int, int]


def main() -> None:
    hardware = detect()
    runs = []
    for name in FILES:
        rows = [json.loads(line) for line in (ROWS / name).read_text(encoding="utf-8").splitlines()]
        cases = [(case, recipe) for case, recipe, _ in estimates(read_cases(ROWS / name), hardware)]

        def raced(item: tuple[dict[str, Any], tuple[Case, Recipe]]) -> dict[str, Any]:
            row, (case, recipe) = item
            return of_run(row, rehearsed(case, recipe, hardware), quantized=recipe.quant_type is not None)

        runs += list(spread(raced, list(zip(rows, cases, strict=True))))
    write_results("loading_order", {"seeds": SEEDS, "runs": runs, "predictable": list(spread(worth, list(RECIPES)))})


def interleaved(load: Phase, kinds: Ints, weights: int, seed: int) -> Phase:
    """`load` as one race of the threads would have it; convert_and_load_state_dict_in_model.

    Each worker takes the next weight in order, makes it on the device in 16 bits, and reads it. The main thread
    quantizes the weights in order, each as soon as it is there, and is faster than the readers. Which of those being
    read comes first is drawn. weights: how many are loaded. kinds: of every key.
    """
    start, jobs, end = _jobs(load, kinds, weights)
    rng = random.Random(seed)
    told, ahead = list(start), iter(range(weights))
    reading: list[int] = []
    there: set[int] = set()

    def read_next() -> None:
        for number in ahead:
            told.append(jobs[number][0])
            reading.append(number)
            return

    for _ in range(WORKERS):
        read_next()
    for number, (_, *quantizing) in enumerate(jobs):
        while number not in there:
            there.add(reading.pop(rng.randrange(len(reading))))
            read_next()
        told += quantizing
    return replace(load, events=np.array(told + end, dtype=np.int64))


def _jobs(load: Phase, kinds: Ints, weights: int) -> tuple[list[Pair], list[list[Pair]], list[Pair]]:
    """(the block that warms the allocator up, the events of each weight, what follows).

    A weight that is packed ends with the drop of its 16 bits; any other is there with its first event.
    """
    events = list(pairs(load.events))
    dropped = {key: place for place, (key, size) in enumerate(events) if size < 0}
    at = 2
    jobs = []
    for _ in range(weights):
        key = events[at][0]
        end = (dropped[key] if kinds[key] == KIND["temporaries"] else at) + 1
        jobs.append(events[at:end])
        at = end
    return events[:2], jobs, events[at:]


def races(rehearsal: Rehearsal) -> Iterator[Rehearsal]:
    """The rehearsal under every seed."""
    load, *others = rehearsal.phases
    weights = sum(weight.stored and not weight.adapter for weight in rehearsal.weights)
    for seed in range(SEEDS):
        yield replace(rehearsal, phases=[interleaved(load, rehearsal.kinds, weights, seed), *others])


def figures(rehearsal: Rehearsal, *, expandable: bool = False) -> dict[str, int]:
    """What `rehearsal` takes, in bytes, under the names that the measured rows use."""
    allocator = Allocator(expandable_segments=expandable)
    loaded = 0
    for phase in rehearsal.phases:
        if phase.name != "load":
            break
        allocator.run(pairs(phase.events))
        loaded = allocator.allocated
        if phase.empty_cache:
            allocator.empty_cache()
    memory = replay(rehearsal, Allocator(expandable_segments=expandable))
    return {
        "allocated_after_load_bytes": loaded,
        "peak_allocated_bytes": memory.allocated,
        "peak_reserved_bytes": memory.reserved,
        "highest_reserved_bytes": memory.highest_reserved,
    }


def of_run(row: dict[str, Any], rehearsal: Rehearsal, *, quantized: bool) -> dict[str, Any]:
    """Of each figure: measured, one weight after another, and lowest, median and highest of the races.

    threads: whether its transformers reads with threads what it quantizes. Weights that stay in 16 bits were loaded
    into the host's memory: there is nothing to race for.
    """
    version = re.search(r"transformers ([\d.]+\d)", row["stack"])
    assert version is not None
    raced = [figures(race) for race in races(rehearsal)] if quantized else []
    ordered = figures(rehearsal)
    found = {}
    for key in ("allocated_after_load_bytes", "peak_allocated_bytes", "peak_reserved_bytes"):
        measured = row["measured"][key]
        spread_bytes = [race[key] for race in raced] or [ordered[key]]
        found[key] = {
            "measured": measured,
            "ordered": ordered[key],
            "lowest": min(spread_bytes),
            "median": int(statistics.median(spread_bytes)),
            "highest": max(spread_bytes),
            "inside": min(spread_bytes) <= measured <= max(spread_bytes),
        }
    return {"id": row["id"], "transformers": version[1], "threads": quantized and THREADS[version[1]], **found}


def worth(model: str) -> dict[str, Any]:
    """Reserved bytes of our own loop, steady and highest, each measure switched off in turn: (lowest, highest)."""
    config = load_config(resolve(model))
    target = target_of(detect(), gpu_name=GPU, vram_gib=None, cpu_flops_per_s=lambda *_: 1.0)
    estimator = Estimator(model, config, target)
    recipe = Recipe.from_dict({**RECIPES[model], "micro_batch": 4, "seq_len": 1024, "attention": estimator.attention})
    ours = estimator.rehearse(recipe)
    kept = [replace(phase, empty_cache=False) for phase in ours.phases]
    lengths = random.Random(0).choices(range(64, recipe.seq_len + 1), k=STEPS)
    others = [estimator.rehearse(replace(recipe, seq_len=length)) for length in lengths]
    found = {
        "as it is": [figures(ours, expandable=True)],
        "threads read the weights": [figures(race, expandable=True) for race in races(ours)],
        "the cache is kept after loading": [figures(replace(ours, phases=kept), expandable=True)],
        "segments do not expand": [figures(ours)],
        "every batch of its own length": [figures(_one_after_another(ours, others), expandable=True)],
        "all of these": [figures(race) for race in races(_one_after_another(replace(ours, phases=kept), others))],
    }
    keys = ("peak_allocated_bytes", "peak_reserved_bytes", "highest_reserved_bytes")
    ranges = {
        name: {key: (min(f[key] for f in all_of), max(f[key] for f in all_of)) for key in keys}
        for name, all_of in found.items()
    }
    return {"model": model, "gpu": GPU, "recipe": recipe.to_dict(), "reserved": ranges}


def _one_after_another(first: Rehearsal, others: list[Rehearsal]) -> Rehearsal:
    """`first`, and then the steady steps of `others`: its own key for all that they make."""
    phases, kinds = list(first.phases), [first.kinds]
    keys = len(first.kinds)
    for other in others:
        steady = other.phases[other.steady :]
        phases += [replace(phase, events=phase.events + np.array([keys, 0])) for phase in steady]
        kinds.append(other.kinds)
        keys += len(other.kinds)
    return replace(first, phases=phases, kinds=np.concatenate(kinds), evaluation={})


if __name__ == "__main__":
    main()
