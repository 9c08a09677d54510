"""A loss or gradient that is no number ends the run before the update, and names the rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoft.errors import TrainingError
from autoft.trainer.loop.callbacks import DEAD_AFTER, SPIKE_WINDOW, LossWatch
from autoft.trainer.objectives import OBJECTIVES
from autoft.trainer.run.session import run
from autoft.trainer.storage.checkpoint import newest_checkpoint
from autoft.trainer.storage.ownership import CHECKPOINTS
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.conftest import minimise


def poisoned(monkeypatch, model_calls, *, gradient_only):
    """The loss of the row that asks for number 7 is no number from some call on, or its gradient alone."""
    real, calls = OBJECTIVES["sft"].loss, []

    def loss(model, batch, recipe, *, num_trained_tokens=None):
        calls.append(1)
        value = real(model, batch, recipe, num_trained_tokens=num_trained_tokens)
        rows = ["".join(chr(max(0, t)) for t in row) for row in batch["input_ids"].tolist()]
        if len(calls) > model_calls and any(POISON in row for row in rows):
            if gradient_only:
                value.register_hook(lambda gradient: gradient * float("nan"))
                return value
            return value * float("inf")
        return value

    minimise(loss, monkeypatch)


POISON = ""


@pytest.mark.parametrize("gradient_only", [False, True])
def test_the_row_is_named_and_saved_and_no_update_is_made(
    make_job, tmp_path, monkeypatch, tiny_model, data_file, gradient_only
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer("number 17", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("tests.faults.test_not_finite.POISON", "".join(chr(t) for t in ids))
    poisoned(monkeypatch, 2, gradient_only=gradient_only)
    job = make_job(max_steps=None, epochs=1.0, save_steps=1, eval_rows=0)
    with pytest.raises(TrainingError, match="stopped before the update") as ended:
        run(job, tmp_path / "out", plan_toml="")
    assert ended.value.exit_code == 1
    assert f"{data_file.name}:18" in ended.value.what
    said = json.loads((unfinished(tmp_path / "out") / "not-finite.json").read_text())
    assert [row["where"].rsplit("/")[-1] for row in said["rows"]] == [f"{data_file.name}:18"]
    assert "number 17" in said["rows"][0]["text"]
    kept, _ = newest_checkpoint(unfinished(tmp_path / "out") / CHECKPOINTS)
    assert kept is not None
    assert all(torch.isfinite(value).all() for value in kept.state()["weights"].values())


def test_weights_that_are_no_numbers_are_found_before_an_hour_is_spent(make_job, tmp_path, tiny_model):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    job = make_job()
    with pytest.raises(TrainingError, match="loss of the base alone is nan"):
        run(replace(job, model=str(broken)), tmp_path / "out", plan_toml="")


def test_a_jump_of_the_loss_is_told_once():
    watch = LossWatch()
    said = [watch.add(2.0 + 0.01 * (step % 3), 1.0) for step in range(SPIKE_WINDOW + 5)]
    assert not any(said)
    assert "jumped to 9.000 from about 2.010" in str(watch.add(9.0, 1.0))
    assert watch.add(9.5, 1.0) is None


def test_a_loss_that_does_not_move_is_told_once():
    watch = LossWatch()
    said = [watch.add(2.0 + 0.001 * (step % 2), 1.0) for step in range(2 * DEAD_AFTER)]
    assert [bool(text) for text in said].count(True) == 1
    assert "has stayed at" in str(said[DEAD_AFTER - 1])
    learning = LossWatch()
    assert not any(learning.add(2.0 - 0.001 * step, 1.0) for step in range(2 * DEAD_AFTER))


def test_a_gradient_of_zero_is_told():
    assert "gradient is zero" in str(LossWatch().add(2.0, 0.0))
