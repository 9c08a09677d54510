"""Does the order in which threads load explain reserved memory? The measured runs, replayed under many orders.

    python benchmarks/loading_order.py [ORDERS]

Nothing is fitted: how far the threads run ahead of the main one is drawn anew for each order.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from random import Random
from typing import Any

from common import write_results
from measured_runs import FILES, ROWS

from autoft.planner.cases import Case, estimates, read_cases
from autoft.planner.estimator import Estimator
from autoft.planner.ghost import OURS, PLAIN, Loop, Rehearsal, loaded_by_threads
from autoft.planner.memory import Memory, replay
from autoft.planner.parallel import spread
from autoft.planner.target import target_of
from autoft.profiles.detect import detect
from autoft.trainer.recipe import Recipe
from autoft.trainer.resolve import load_config, resolve

ORDERS = 20
BOUGHT = (
    "t4-tinyllama-1.1b-chat-v1.0-nf4-flash-b2-s1024-r32",
    "rtx4080-qwen2.5-0.5b-instruct_lora_s1024_b1_r16_steps3",
)
LOOPS = {
    "ours": OURS,
    "cache not emptied": replace(OURS, empty_cache=False),
    "segments not expandable": replace(OURS, expandable_segments=False),
    "neither": replace(OURS, empty_cache=False, expandable_segments=False),
}


def main() -> None:
    orders = int(sys.argv[1]) if len(sys.argv) > 1 else ORDERS
    hardware = detect()
    found: list[tuple[dict[str, Any], Case, Recipe]] = []
    for name in FILES:
        rows = [json.loads(line) for line in (ROWS / name).read_text(encoding="utf-8").splitlines()]
        answers = estimates(read_cases(ROWS / name), hardware)
        found += [(row, case, recipe) for row, (case, recipe, _) in zip(rows, answers, strict=True)]

    def estimator(case: Case) -> Estimator:
        target = target_of(hardware, gpu_name=case.gpu, vram_gib=None, cpu_flops_per_s=lambda *_: 1.0)
        return Estimator(case.model, load_config(resolve(case.model)), target)

    def run(item: tuple[dict[str, Any], Case, Recipe]) -> dict[str, Any]:
        row, case, recipe = item
        loop = replace(PLAIN, output_until=case.output_until)
        how = estimator(case)
        rehearsal = how.rehearse(recipe, loop=loop, backend=case.backend)
        memories = _orders(how, rehearsal, recipe, loop, orders if recipe.quant_type else 0)
        return {"id": row["id"], **{name: _told(row, memories, name) for name in ("allocated", "reserved")}}

    def bought(item: tuple[dict[str, Any], Case, Recipe]) -> dict[str, Any]:
        row, case, recipe = item
        how = estimator(case)
        table = {}
        for name, loop in LOOPS.items():
            rehearsal = how.rehearse(recipe, loop=loop, backend=case.backend)
            memories = _orders(how, rehearsal, recipe, loop, orders)
            table[name] = {"sequential": memories[0].reserved, "threads": _range([m.reserved for m in memories[1:]])}
        return {"id": row["id"], "reserved": table}

    runs = list(spread(run, found))
    buys = list(spread(bought, [item for item in found if item[0]["id"] in BOUGHT]))
    write_results("loading_order", {"orders": orders, "runs": runs, "predictability": buys})


def _orders(how: Estimator, rehearsal: Rehearsal, recipe: Recipe, loop: Loop, orders: int) -> list[Memory]:
    """One after another, then by threads in so many orders; 16-bit weights of a plain loop load on the host."""
    drawn = [loaded_by_threads(rehearsal, recipe, loop, Random(seed)) for seed in range(orders)]
    return [replay(one, how.allocator(loop)) for one in (rehearsal, *drawn)]


def _told(row: dict[str, Any], memories: list[Memory], name: str) -> dict[str, Any]:
    values = [getattr(memory, name) for memory in memories]
    measured = row["measured"][f"peak_{name}_bytes"]
    spread_of = _range(values[1:] or values)
    covered = spread_of["lowest"] <= measured <= spread_of["highest"]
    return {"measured": measured, "sequential": values[0], "threads": spread_of, "covered": covered}


def _range(values: list[int]) -> dict[str, int]:
    return {"lowest": min(values), "median": int(statistics.median(values)), "highest": max(values)}


if __name__ == "__main__":
    main()
