"""Loading by threads: every weight is read and then converted, in an order that a seed decides."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import transformers

from autoft.planner.depth import pairs
from autoft.planner.ghost import PLAIN, _turns, loaded_by_threads, rehearse
from autoft.planner.kernels import Device
from autoft.trainer.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_each_weight_is_read_and_then_converted_in_order(seed) -> None:
    turns = list(_turns(20, None if seed is None else Random(seed)))
    assert [number for number, reading in turns if not reading] == list(range(20))
    assert sorted(number for number, reading in turns if reading) == list(range(20))
    assert all(turns.index((number, True)) < turns.index((number, False)) for number in range(20))


def test_the_same_seed_draws_the_same_order() -> None:
    assert list(_turns(20, Random(1))) == list(_turns(20, Random(1))) != list(_turns(20, Random(2)))


def test_threads_leave_the_same_bytes_and_never_need_less() -> None:
    config = transformers.AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=500
    )
    recipe = Recipe.from_dict({"method": "qlora", "quant_type": "nf4", "micro_batch": 1, "seq_len": 16})
    alone = rehearse(recipe, config, Device((8, 6)), depth=None, loop=PLAIN)

    def live(rehearsal) -> list[int]:
        sizes = [size for phase in rehearsal.phases if phase.name == "load" for _, size in pairs(phase.events)]
        return [sum(sizes[: end + 1]) for end in range(len(sizes))]

    for seed in range(5):
        threads = loaded_by_threads(alone, recipe, PLAIN, Random(seed))
        assert len(threads.kinds) == len(alone.kinds)
        assert live(threads)[-1] == live(alone)[-1]
        assert max(live(threads)) >= max(live(alone))


def test_the_recorded_orders_cover_every_measured_run() -> None:
    record = json.loads((ROOT / "benchmarks/results/loading_order.json").read_text(encoding="utf-8"))
    rows = [
        json.loads(line)
        for name in ("t4", "rtx4080")
        for line in (ROOT / f"tests/validation/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [run["id"] for run in record["runs"]] == [row["id"] for row in rows]
