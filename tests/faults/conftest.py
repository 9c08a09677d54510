"""A small job, run in this process or in one of its own that a test can hurt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.home import sha256
from autoft.trainer.job import Job
from autoft.trainer.objectives import OBJECTIVES
from autoft.trainer.recipe import Recipe

STEPS = 6
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "packed": {"packing": True, "seq_len": 128},
    "qlora": {"method": "qlora", "quant_type": "nf4", "double_quant": True},
    "8-bit optimizer": {"optimizer": "adamw_8bit"},
    "full": {"method": "full", "dropout": 0.0, "rank": 16, "alpha": 32.0},
}


def minimise(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `loss` trained in place of the usual one; what is reported of held-out rows stays."""
    monkeypatch.setitem(OBJECTIVES, "sft", replace(OBJECTIVES["sft"], loss=loss))


@pytest.fixture
def make_job(tiny_model: Path, data_file: Path) -> Callable[..., Job]:
    """`make_job("lora", max_steps=3)`: two micro-batches a step, shuffled, with dropout, in float32."""

    def make(kind: str = "lora", recipe: dict[str, Any] | None = None, **fields: Any) -> Job:
        settings = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "micro_batch": 4, "seq_len": 64}
        settings |= {"base_dtype": "float32", "loss": "selected", **RECIPES[kind], **(recipe or {})}
        defaults: dict[str, Any] = {"epochs": 10.0, "max_steps": STEPS, "accumulation": 2, "learning_rate": 0.01}
        defaults |= {"max_new_tokens": 0, "eval_rows": 4, "save_steps": 2}
        return Job(model=str(tiny_model), data=str(data_file), recipe=Recipe(**settings), **{**defaults, **fields})

    return make


def weights_of(folder: Path) -> str:
    """Digest of what a run has learnt."""
    return sha256(next(folder.glob("*model.safetensors")))
