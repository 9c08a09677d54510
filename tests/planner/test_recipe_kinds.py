"""Rehearsals of further kinds of recipes against real steps on the CPU, and what must hold of them on a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft.planner.allocator import Allocator
from autoft.planner.device import Device
from autoft.planner.ghost import Rehearsal, find_depth, rehearse
from autoft.planner.memory import replay
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config

WITHIN_PERCENT = 0.5
AMPERE = Device((8, 6))
BASE: dict[str, Any] = {"autocast": True, "loss": "fused", "micro_batch": 2, "seq_len": 96, "rank": 4}
# 12 layers, 4 heads over 2 key heads of 16, 64 wide
CONFIG = family_config("llama3")

SHORT = {"micro_batch": 2, "seq_len": 128, "rank": 8}
FLOAT32 = SHORT | {"base_dtype": "float32", "loss": "selected"}
AUTOCAST = SHORT | {"autocast": True, "loss": "logits"}
NF4 = SHORT | {"method": "qlora", "quant_type": "nf4", "autocast": True, "loss": "fused"}
CHECKPOINTED = {"gradient_checkpointing": True}
DORA = {"use_dora": True, "use_rslora": True}

# name -> (family, settings)
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "dora-float32": ("llama", FLOAT32 | DORA),
    "dora-autocast-checkpointed": ("llama", AUTOCAST | DORA | CHECKPOINTED),
    "every-second-layer-float32": ("llama", FLOAT32 | CHECKPOINTED | {"checkpoint_every": 2}),
    "dora-nf4-double": ("llama", NF4 | DORA | {"double_quant": True}),
}


@pytest.fixture(scope="module")
def cpu_memory():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("cpu_memory")


@pytest.mark.parametrize("name", REAL)
def test_every_peak_of_a_real_run_is_met(cpu_memory, name) -> None:
    family, settings = REAL[name]
    row = cpu_memory.compared(cpu_memory.Case(family, cpu_memory.GROUPED, settings), steps=2)
    off = {phase: figures["error_percent"] for phase, figures in row["phases"].items()}
    assert max(map(abs, off.values())) <= WITHIN_PERCENT, off


def run(*, config: Any = CONFIG, depth: bool = True, **settings: Any) -> Rehearsal:
    recipe = Recipe(**BASE | settings)
    return rehearse(recipe, config, AMPERE, depth=find_depth(recipe, config) if depth else None)


def allocated(rehearsal: Rehearsal) -> int:
    return replay(rehearsal, Allocator()).allocated


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama3", DORA),
        ("llama3", DORA | CHECKPOINTED),
        ("llama3", CHECKPOINTED | {"checkpoint_every": 2}),
        ("llama3", CHECKPOINTED | {"checkpoint_every": 3, "offload_checkpoints": True}),
        ("llama3", CHECKPOINTED | {"checkpoint_every": 20}),
        ("gemma3", CHECKPOINTED | {"checkpoint_every": 2}),  # whose windows come in a period of their own, of six
    ],
    ids=str,
)
def test_a_few_layers_stand_for_all(family, settings) -> None:
    config = family_config(family, num_hidden_layers=24 if family == "gemma3" else 12)
    short, full = (run(config=config, **settings, depth=depth) for depth in (True, False))
    assert allocated(short) == allocated(full)
    assert [len(phase.events) for phase in short.phases] == [len(phase.events) for phase in full.phases]
    assert short.work == full.work
    assert short.offloaded_bytes == full.offloaded_bytes


def test_a_period_of_checkpoints_is_short_and_repeats() -> None:
    plain = find_depth(Recipe(), CONFIG)
    assert plain is not None
    assert (plain.rehearsed, plain.stands_for) == (4, (0, 1, *[2] * 9, 3))
    third = plain.alternating(3)  # layers 0, 3, 6, 9 are checkpointed
    assert (third.rehearsed, third.stands_for) == (6, (0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5))


def test_the_fewer_layers_are_checkpointed_the_more_memory_and_the_less_work() -> None:
    every = [run(**CHECKPOINTED, checkpoint_every=k) for k in (1, 2, 3, 12)]
    taken = [allocated(r) for r in (*every, run())]
    assert taken == sorted(set(taken))
    work = [sum(r.work.values()) for r in (*every, run())]
    assert work == sorted(set(work), reverse=True)


def test_dora_trains_a_length_a_row_and_builds_each_updated_weight() -> None:
    lora, dora = run(), run(**DORA)
    rows_a_layer = 64 + 32 + 32 + 64 + 160 + 160 + 64
    assert dora.trainable_params - lora.trainable_params == 12 * rows_a_layer
    # the lengths of 160 rows of gate and up: twice a layer and step, in float32 under autocast
    norm = torch.ops.aten.linalg_vector_norm.default
    assert sum(made == (norm, (160,), torch.float32) for made in dora.made.values()) == 2 * 12 * 2
    # while loading, three tensors as large as a weight pass before its lengths are there
    load = [int(size) for _, size in dora.phases[0].events]
    at = load.index(2 * 160 * 64, len(load) // 3)
    assert any(load[i : i + 6] == [20480] * 3 + [-20480] * 3 for i in range(at, len(load)))
