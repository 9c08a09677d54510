"""A question costs few rehearsals, a rehearsal one trace of its micro-batches, and a plan no compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from autoft.planner.estimator import estimate_recipe
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of_profile
from autoft.planner.rehearsal.layers import Extension
from autoft.planner.rehearsal.step import Step
from autoft.planner.request import Request
from autoft.planner.search import parallel
from autoft.planner.search.candidates import exact
from autoft.planner.timing.allreduce import Replicas
from autoft.planner.what_if.compare import compare
from autoft.planner.what_if.context import make_frame
from autoft.planner.what_if.limits import find_limit
from autoft.trainer.sources.resolve import load_config, resolve
from tests.support.machines import NO_GPU as CPU

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 50_000,
    "tie_word_embeddings": True,
}
LATER_AS_TRACED = {
    "lora": {"method": "lora"},
    "dora": {"method": "lora", "use_dora": True},
    "offloaded": {"method": "lora", "gradient_checkpointing": True, "offload_checkpoints": True},
    "4 bits": {"method": "qlora", "quant_type": "nf4", "gradient_checkpointing": True},
    "8 bits": {"method": "qlora", "quant_type": "int8"},
    "full": {"method": "full"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return str(folder)


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list:
    """The recipes that are rehearsed, all of them in this process."""
    recipes = []
    rehearse = estimate_recipe.rehearse

    def counted(recipe, *args, **options):
        recipes.append(recipe)
        return rehearse(recipe, *args, **options)

    monkeypatch.setattr(estimate_recipe, "rehearse", counted)
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    return recipes


@pytest.mark.parametrize(
    ("quantity", "vram_gib", "seq_len", "most"),
    [("seq_len", 1.0, None, 5), ("micro_batch", 0.8, 1024, 3), ("rank", 0.72, 1024, 7)],
)
def test_a_limit_takes_few_rehearsals_a_recipe(rehearsed, model, quantity, vram_gib, seq_len, most) -> None:
    """Two of them are the answer: what fits, and the next, which does not."""
    frame = make_frame(Request(model=model, gpu="rtx-3060", vram_gib=vram_gib, seq_len=seq_len), CPU)
    limit = find_limit(frame, quantity)
    of_each = Counter((r.quant_type, r.gradient_checkpointing, r.offload_checkpoints, r.optimizer) for r in rehearsed)
    assert len(of_each) == len(limit.ceilings)
    assert max(of_each.values()) <= most


def test_what_needs_the_least_is_found_without_the_optimizers_between(rehearsed, model) -> None:
    compare(make_frame(Request(model=model, gpu="rtx-3060", seq_len=1024), CPU))
    assert {recipe.optimizer for recipe in rehearsed} == {"adamw_torch_fused", "paged_adamw_8bit"}


@pytest.mark.parametrize("name", LATER_AS_TRACED)
def test_the_first_micro_batch_tells_the_later_ones(model, monkeypatch, name) -> None:
    """But in 8 bits, whose layers keep something from one call to the next: there the second is traced."""
    traces, compared = [], []
    micro_batch, micro_batches = Step._micro_batch, Step.micro_batches

    def noted(step):
        traces.append(step)
        return micro_batch(step)

    def and_traced(step, **options):
        found = micro_batches(step, **options)
        sections, gradients = micro_batch(step)
        compared.append((found.rest[0], Extension(sections, step.depth), gradients))
        return found

    monkeypatch.setattr(Step, "_micro_batch", noted)
    monkeypatch.setattr(Step, "micro_batches", and_traced)
    target = target_of_profile("rtx-3060")
    recipe = exact(target, seq_len=256, pinned=LATER_AS_TRACED[name])
    estimator = Estimator("model", load_config(resolve(model)), target)
    estimator.rehearse(recipe, replicas=Replicas(1, 4))
    [(later, traced, gradients)] = compared
    assert len(traces) == (2 if name == "8 bits" else 1)
    assert gradients == []
    assert np.array_equal(traced.events, later.events)
    assert np.array_equal(traced.kinds, later.kinds)
    assert traced.marks == later.marks


def test_a_plan_does_not_import_the_compiler() -> None:
    """Which bitsandbytes' kernels import when they are first run."""
    code = (
        "import sys\n"
        "import torch\n"
        "compile = torch.compile\n"
        "from autoft.trainer.runtime.environment import import_bitsandbytes\n"
        "import_bitsandbytes()\n"
        "import autoft.planner.rehearsal.step\n"
        "assert torch.compile is compile\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
