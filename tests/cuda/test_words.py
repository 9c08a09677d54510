"""What is shown of a card in words: a run, its history, an estimate explained, a plan as other trainers' settings."""

from __future__ import annotations

import pytest

from tests.cuda.runs import run


@pytest.fixture
def card(on_card):
    return on_card("rtx4090", truth=True)


def test_a_run_is_shown_and_remembered(card, tiny_model, data_file, tmp_path):
    words = [word for word in run(tiny_model, data_file, tmp_path / "out", max_steps=2) if word != "--json"]
    done = card.warm(*words)
    assert done.code == 0, done.err
    assert "NVIDIA GeForce RTX 4090" in done.err
    listed = card.warm("history")
    assert "On NVIDIA GeForce RTX 4090" in listed.out
    assert card.warm("history", "--device", "4090", "--json").json != []
    assert card.warm("history", "--device", "t4").code == 2


def test_an_estimate_is_explained_part_by_part(card, tiny_model):
    settings = ("--set", "optimizer=paged_adamw_8bit", "--set", "rank=64")
    done = card.warm("estimate", tiny_model, "--method", "qlora", "--gpu", "rtx-4090", *settings, "--explain")
    assert done.code == 0, done.err
    for words in ("CUDA context", "a cuBLAS handle each"):
        assert words in " ".join(done.out.split())


def test_a_plan_for_a_card_is_written_for_other_trainers(card, tiny_model, data_file, tmp_path):
    plan = tmp_path / "plan.toml"
    assert card.warm("plan", tiny_model, "--data", data_file, "-o", plan).code == 0
    for other in ("axolotl", "llamafactory", "trl", "unsloth"):
        done = card.warm("export-config", plan, "--to", other)
        assert done.code == 0, done.err
