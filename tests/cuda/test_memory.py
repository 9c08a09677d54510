"""Another process takes memory of the card in the midst of a run: it costs time, and nothing else."""

from __future__ import annotations

import json

import pytest

from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from tests.conftest import write_jsonl
from tests.cuda.runs import events_of

MIB = 2**20


@pytest.fixture(scope="module")
def job(tiny_model, tmp_path_factory):
    """Steps of 8 rows of 250 tokens: tens of MiB beside one of weights."""
    path = tmp_path_factory.mktemp("rows") / "long.jsonl"
    write_jsonl(path, [{"prompt": f"n {n}", "completion": f"{n} " * 75} for n in range(80)])
    recipe = Recipe(rank=4, alpha=8.0, micro_batch=8, seq_len=256, base_dtype="float32", loss="logits")
    return Job(
        model=str(tiny_model), data=str(path), recipe=recipe, device="cuda", epochs=10.0, max_steps=4, accumulation=1,
        learning_rate=0.01, max_new_tokens=0, eval_rows=16, save_steps=2,
    ).to_dict()  # fmt: skip


@pytest.fixture(scope="module")
def disturbed(job, tmp_path_factory):
    """`disturbed(card, when, leave)`: (folder, what a run came to) where all but `leave` bytes were taken then."""

    def run(card, when=None, leave=0, code=0):
        out = tmp_path_factory.mktemp("run") / "out"
        spec = {"job": job, "out": str(out)} | ({"when": when, "leave": leave} if when else {})
        done = card.warm(json.dumps(spec), call="tests.cuda.taken:main")
        assert done.code == code, done.err
        return out, done

    return run


@pytest.fixture(scope="module")
def quiet(disturbed, tmp_path_factory):
    """A run that nothing disturbs: (folder, its result)."""
    from tests.cuda.card import Card

    folder, done = disturbed(Card("rtx3060", tmp_path_factory.mktemp("card"), truth=True))
    return folder, json.loads(done.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("when", "share", "change", "step"),
    [("rehearsal", 0.7, "micro_batch", 0), ("step", 0.7, "micro_batch", 3), ("save", 0.7, "micro_batch", 3)],
)
def test_a_step_goes_on_with_smaller_micro_batches_to_the_same_weights(
    on_card, disturbed, quiet, when, share, change, step
):
    import torch
    from safetensors.torch import load_file

    expected, result = quiet
    held, peak = result["memory_bytes"], result["measured"]["peak_bytes"]
    card = on_card("rtx3060", truth=True, shared=True)
    out, done = disturbed(card, when, int(share * (peak - held)))
    assert done.refused > 0
    recovered = events_of(out, "recovered")
    assert {event["step"] for event in recovered} == {step}
    assert recovered[0]["change"] == change
    assert "out of memory" in recovered[0]["reason"]
    assert [event["step"] for event in events_of(out, "saved")] == [0, 2, 4]
    wanted = load_file(expected / "adapter_model.safetensors")
    for name, value in load_file(out / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)


def test_an_evaluation_goes_on_with_fewer_rows_and_finds_the_same_loss(on_card, disturbed, quiet):
    _, result = quiet
    card = on_card("rtx3060", truth=True, shared=True)
    _, done = disturbed(card, "evaluation", 4 * MIB)
    assert done.refused > 0
    outcome = json.loads(done.out.splitlines()[-1])
    assert any(note.startswith("out of memory in the evaluation with 8 rows at once") for note in outcome["notes"])
    assert outcome["after"]["loss"] == pytest.approx(result["after"]["loss"], rel=1e-3)


def test_memory_that_is_not_enough_for_one_row_ends_the_run_and_keeps_what_was_learnt(on_card, disturbed):
    card = on_card("rtx3060", truth=True, shared=True)
    out, done = disturbed(card, "step", 2 * MIB, code=4)
    assert "Error: out of memory at step 3, with one row at a time and all that saves memory" in done.err
    assert "the state after step 2 is kept" in done.err
    changes = [event["change"] for event in events_of(out, "recovered")]
    assert changes == [*["micro_batch"] * 3, "gradient_checkpointing", "offload_checkpoints"]
