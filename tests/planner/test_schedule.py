"""Batches, epochs and the time of a run."""

from __future__ import annotations

import random

import pytest

from autoft.planner.search.hyperparameters import (
    MAX_ROWS_PER_STEP,
    MAX_TOKENS_PER_STEP,
    MIN_STEPS,
    Rows,
    rows_of,
    schedule,
)
from autoft.trainer.adapters import ADAPTERS

LENGTHS = tuple(random.Random(0).choices(range(20, 500), weights=range(480, 0, -1), k=2000))
LORA = ADAPTERS["lora"]


def padded_by_transformers(lengths: tuple[int, ...], micro_batch: int, rows_per_step: int) -> float:
    """The mean micro-batch that its own sampler makes, over as many rows of 512 tokens."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    order = list(LengthGroupedSampler(rows_per_step, lengths=list(lengths)))
    batches = [order[at : at + micro_batch] for at in range(0, len(order), micro_batch)]
    return sum(-(-max(lengths[i] for i in batch) // 16) * 16 for batch in batches) / (512 * len(batches))


@pytest.mark.parametrize("micro_batch", [1, 4, 16])
def test_rows_are_padded_as_the_trainer_s_sampler_groups_them(micro_batch: int) -> None:
    rows = Rows(LENGTHS, 512, packing=False)
    grouped = rows.padded(micro_batch, 16, grouped=True)
    assert grouped == pytest.approx(padded_by_transformers(LENGTHS, micro_batch, 16), rel=0.02)
    alone = rows.padded(micro_batch, 16, grouped=False)
    assert alone == pytest.approx(grouped) if micro_batch == 1 else alone > 1.2 * grouped


def test_packed_rows_have_no_padding_and_no_data_no_rows() -> None:
    assert Rows((512,) * 9, 512, packing=True).padded(4, 16, grouped=False) == 1.0
    assert rows_of(None, 512, packing=False) is None


@pytest.mark.parametrize(
    ("lengths", "rows_per_step"),
    [
        ((100,) * 10_000, MAX_ROWS_PER_STEP),
        ((2000,) * 10_000, 4),
        ((30_000,) * 10_000, 1),
        ((100,) * 1600, MAX_ROWS_PER_STEP),
        ((100,) * 1599, 8),
        ((100,) * 50, 1),
    ],
)
def test_a_step_has_as_many_rows_as_tokens_and_steps_allow(lengths: tuple[int, ...], rows_per_step: int) -> None:
    found, sources = schedule(False, None, Rows(lengths, max(lengths), packing=False), max(lengths), adapter=LORA)
    assert found["rows_per_step"] == rows_per_step
    assert rows_per_step == 1 or rows_per_step * lengths[0] <= MAX_TOKENS_PER_STEP
    assert rows_per_step == 1 or len(lengths) * found["epochs"] // rows_per_step >= MIN_STEPS
    assert sources["accumulation"].text.startswith(f"batch of {rows_per_step}, ")


def test_rows_are_grouped_where_that_saves_padding() -> None:
    mixed, _ = schedule(False, None, Rows(LENGTHS, 512, packing=False), 512, adapter=LORA)
    alike, sources = schedule(False, None, Rows((200,) * 2000, 512, packing=False), 512, adapter=LORA)
    assert (mixed["group_by_length"], alike["group_by_length"]) == (True, False)
    assert "group_by_length" not in sources


def test_full_fine_tuning_learns_at_a_tenth_of_the_rate() -> None:
    adapter, _ = schedule(False, None, None, 512, adapter=LORA)
    full, sources = schedule(False, None, None, 512, adapter=None)
    assert full["learning_rate"] == adapter["learning_rate"] / 10
    assert "LoRA Without Regret" in sources["learning_rate"].text
    assert "rank" not in sources
