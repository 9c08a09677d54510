"""A run that was stopped and taken up again ends with the weights of one that never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from autoft.errors import Interrupted, OptionError, OutputError, Resumable
from autoft.trainer.events import Rehearsed, Resumed, Stage, Step
from autoft.trainer.run.session import resume, run
from autoft.trainer.storage.checkpoint import newest_checkpoint
from autoft.trainer.storage.ownership import CHECKPOINTS
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.conftest import RECIPES, STEPS, weights_of


class SignalAt:
    """A listener that sends this process a signal when an event of a kind comes that fits."""

    def __init__(self, kind, fits=lambda event: True, number=signal.SIGINT):
        self.kind, self.fits, self.number = kind, fits, number
        self.events = []

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, self.kind) and self.fits(event):
            self.kind = ()
            os.kill(os.getpid(), self.number)


def stopped_at(step, number=signal.SIGINT):
    return SignalAt(Step, lambda event: event.step == step, number)


@pytest.mark.parametrize("kind", RECIPES)
def test_a_stopped_run_goes_on_to_the_same_weights(make_job, tmp_path, kind):
    job = make_job(kind)
    whole = run(job, tmp_path / "whole", plan_toml="")
    out = tmp_path / "out"
    with pytest.raises(Resumable) as stopped:
        run(job, out, plan_toml="", listener=stopped_at(3))
    assert stopped.value.exit_code == 4
    assert "step 3" in stopped.value.what
    assert stopped.value.fix == f"autoft resume {out}"
    result = resume(out, job)
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert result.losses == whole.losses
    assert (result.tokens, result.trained_tokens) == (whole.tokens, whole.trained_tokens)
    assert result.after.loss == whole.after.loss
    assert not unfinished(out).exists()


@pytest.mark.parametrize(
    "fields", [{"group_by_length": True}, {"max_steps": None, "epochs": 2.5}, {"schedule": "linear"}]
)
@pytest.mark.parametrize("step", [1, 5])
def test_whatever_the_order_of_rows_and_the_place(make_job, tmp_path, fields, step):
    job = make_job(**fields)
    run(job, tmp_path / "whole", plan_toml="")
    out = tmp_path / "out"
    with pytest.raises(Resumable):
        run(job, out, plan_toml="", listener=stopped_at(step, signal.SIGTERM))
    resume(out, job)
    assert weights_of(out) == weights_of(tmp_path / "whole")


def test_stopped_again_and_again(make_job, tmp_path):
    job = make_job()
    run(job, tmp_path / "whole", plan_toml="")
    out = tmp_path / "out"
    with pytest.raises(Resumable):
        run(job, out, plan_toml="", listener=stopped_at(1))
    for step in range(2, STEPS):
        with pytest.raises(Resumable):
            resume(out, job, listener=stopped_at(step))
    result = resume(out, job)
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert [event["event"] for event in result.events] == ["resumed"] * (STEPS - 1)


def test_stopped_while_it_evaluates_or_before_it_trains(make_job, tmp_path):
    job = make_job(max_new_tokens=4)
    run(job, tmp_path / "whole", plan_toml="")
    for at, (name, detail) in enumerate([("rehearse", ""), ("evaluate", "before"), ("evaluate", "after")]):
        out = tmp_path / f"out{at}"
        listener = SignalAt(Stage, lambda event, n=name, d=detail: event.name == n and d in event.detail)
        with pytest.raises(Resumable):
            run(job, out, plan_toml="", listener=listener)
        listener = SignalAt(())
        resume(out, job, listener=listener)
        assert weights_of(out) == weights_of(tmp_path / "whole")
        assert any(isinstance(event, Resumed) for event in listener.events)


def test_stopped_before_there_is_anything_to_lose(make_job, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted) as stopped:
        run(make_job(), out, plan_toml="", listener=SignalAt(Stage, lambda event: event.name == "model"))
    assert stopped.value.exit_code == 130
    assert not out.exists()
    assert not unfinished(out).exists()


def test_a_closed_terminal_ends_nothing(make_job, tmp_path):
    run(make_job(), tmp_path / "out", plan_toml="", listener=stopped_at(2, signal.SIGHUP))
    assert (tmp_path / "out" / "result.json").exists()


def test_the_rehearsal_leaves_no_trace(make_job, tmp_path):
    """It takes a step with the longest rows: the weights at step 0 are what they were all the same."""
    out = tmp_path / "out"
    with pytest.raises(Resumable):
        run(make_job(), out, plan_toml="", listener=SignalAt(Rehearsed))
    kept, _ = newest_checkpoint(unfinished(out) / CHECKPOINTS)
    assert kept is not None
    assert kept.step == 0
    assert not any(value.any() for name, value in kept.state()["weights"].items() if "lora_B" in name)


def stopped_run(job, out: Path, step: int = 4) -> Path:
    """The checkpoints of a run that was stopped after `step`."""
    with pytest.raises(Resumable):
        run(job, out, plan_toml="", listener=stopped_at(step))
    return unfinished(out) / CHECKPOINTS


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "a bit flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "state.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(make_job, tmp_path, name):
    job = make_job()
    run(job, tmp_path / "whole", plan_toml="")
    for at, (what, damage) in enumerate(DAMAGE.items()):
        out = tmp_path / f"out{at}"
        checkpoints = stopped_run(job, out)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
        damage(checkpoints / "step-00000004" / name)
        listener = SignalAt(())
        resume(out, job, listener=listener)
        resumed = next(event for event in listener.events if isinstance(event, Resumed))
        assert resumed.step == 2, what
        assert "step-00000004" in resumed.skipped[0], what
        assert name in resumed.skipped[0], what
        assert weights_of(out) == weights_of(tmp_path / "whole")


def test_with_no_whole_checkpoint_it_says_so_and_touches_nothing(make_job, tmp_path):
    job = make_job(keep_checkpoints=1)
    checkpoints = stopped_run(job, tmp_path / "out")
    flip(checkpoints / "step-00000004" / "state.safetensors")
    with pytest.raises(OutputError, match="no whole checkpoint"):
        resume(tmp_path / "out", job)
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000004"]


def test_a_checkpoint_of_another_run_is_foreign(make_job, tmp_path):
    job = make_job()
    mine, other = stopped_run(job, tmp_path / "mine"), stopped_run(make_job(seed=1), tmp_path / "other", 5)
    (other / "step-00000005").rename(mine / "step-00000005")
    listener = SignalAt(())
    resume(tmp_path / "mine", job, listener=listener)
    resumed = next(event for event in listener.events if isinstance(event, Resumed))
    assert resumed.step == 4
    assert "of another run" in resumed.skipped[0]


def test_changed_data_and_plan_are_named_and_need_a_word(make_job, tmp_path, data_file):
    job = make_job()
    stopped_run(job, tmp_path / "out")
    lines = data_file.read_text().splitlines()
    data_file.write_text("\n".join([*lines[:-1], json.dumps({"prompt": "new", "completion": "row"})]) + "\n")
    with pytest.raises(OptionError, match="training data") as refused:
        resume(tmp_path / "out", job)
    assert "--accept-changes" in str(refused.value.fix)
    with pytest.raises(OptionError, match=r"learning_rate was 0\.01 and is 0\.02"):
        resume(tmp_path / "out", make_job(learning_rate=0.02))
    result = resume(tmp_path / "out", job, accept_changes=True)
    assert result.steps == STEPS


def test_other_saving_is_no_change(make_job, tmp_path):
    stopped_run(make_job(), tmp_path / "out")
    resume(tmp_path / "out", make_job(save_steps=1, keep_checkpoints=5, save_minutes=1.0))
    assert (tmp_path / "out" / "result.json").exists()


def test_checkpoints_come_and_go_as_the_job_says(make_job, tmp_path):
    checkpoints = stopped_run(make_job(save_steps=1, keep_checkpoints=3), tmp_path / "steps", 5)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000003", "step-00000004", "step-00000005"]
    checkpoints = stopped_run(make_job(save_steps=None, save_minutes=1e-9), tmp_path / "time", 3)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_best_weights_are_kept_and_a_run_without_progress_stops_early(make_job, tmp_path):
    job = make_job(eval_steps=1, early_stopping=2, learning_rate=0.5, max_steps=20, keep_checkpoints=1)
    result = run(job, tmp_path / "out", plan_toml="")
    losses = {step: evaluation.loss for step, evaluation in result.evaluations}
    assert result.best_step == min(losses, key=losses.get)
    assert result.steps == result.best_step + 2 < 20
    assert result.after.loss == pytest.approx(losses[result.best_step])
