"""Rows of like length in one batch: less padding, every row still once an epoch, the same order for the same seed."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, TrainerCallback

from autoft.trainer.data.tokens import Example
from autoft.trainer.job import Job
from autoft.trainer.loop.engine import Engine
from autoft.trainer.model.build import build_model
from autoft.trainer.recipe import Recipe
from autoft.trainer.runtime.signals import StopRequest
from autoft.trainer.storage.checkpoint_manager import Keeper
from autoft.trainer.storage.progress import Progress
from tests.conftest import make_tokenizer

# Four lengths, one after the other in the data, each row with a first token of its own
LENGTHS = [6, 60, 14, 30] * 24
RECIPE = Recipe(base_dtype="float32", loss="selected", micro_batch=4, seq_len=64, rank=2)


def batches(tiny_model, folder, *, epochs: int = 1, seed: int = 0, **settings: bool) -> list[list[list[int]]]:
    """(ids of the unpadded rows) of each micro-batch that a training really sees."""
    seen: list[list[list[int]]] = []

    class Recording(Engine):
        def compute_loss(self, model, inputs, *args, **kwargs):
            rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            seen.append([ids[mask.bool()].tolist() for ids, mask in rows])
            return super().compute_loss(model, inputs, *args, **kwargs)

    job = Job(
        model="",
        recipe=RECIPE,
        epochs=epochs,
        accumulation=2,
        max_new_tokens=0,
        learning_rate=1e-4,
        seed=seed,
        **settings,
    )
    ids = [[3 + number, *[2] * (length - 1)] for number, length in enumerate(LENGTHS)]
    progress = Progress()
    engine = Recording(
        model=build_model(RECIPE, config=AutoConfig.from_pretrained(tiny_model), weights=tiny_model, device="cpu"),
        tokenizer=make_tokenizer(),
        job=job,
        examples=[Example(row, row) for row in ids],
        work_dir=folder,
        keeper=Keeper(folder, job, progress, run_id="", identity={}, listener=lambda _: None),
        progress=progress,
        watch=TrainerCallback(),
        stop=StopRequest(),
        listener=lambda _: None,
    )
    engine.train()
    return seen


def padding(seen: list[list[list[int]]]) -> int:
    """Tokens that only fill rows up to the longest of their batch."""
    return sum(max(map(len, batch)) - len(row) for batch in seen for row in batch)


def test_grouping_pads_less_and_trains_every_row_once(tiny_model, tmp_path) -> None:
    random, grouped = (batches(tiny_model, tmp_path, epochs=2, group_by_length=grouped) for grouped in (False, True))
    assert padding(grouped) < 0.5 * padding(random)
    epoch = len(LENGTHS) // RECIPE.micro_batch
    for seen in (random, grouped):
        for half in (seen[:epoch], seen[epoch:]):
            assert sorted(row[0] for batch in half for row in batch) == list(range(3, 3 + len(LENGTHS)))
    assert max(map(len, grouped[0])) == max(LENGTHS)
    assert grouped[:epoch] != grouped[epoch:]  # each epoch draws anew


def test_the_order_is_the_seed_s(tiny_model, tmp_path) -> None:
    one, again, other = (batches(tiny_model, tmp_path, seed=seed, group_by_length=True) for seed in (3, 3, 4))
    assert one == again != other


def test_packed_rows_have_nothing_to_group() -> None:
    with pytest.raises(ValueError, match="group_by_length has nothing to group beside packing"):
        Job(model="", recipe=Recipe(packing=True), group_by_length=True)
