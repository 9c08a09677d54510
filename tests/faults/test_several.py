"""Two processes that train together: the weights of one alone, whatever becomes of either, and no end of either unseen.

What is done to the second process is done by a sitecustomize.py, which its Python runs before anything else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from autoft.errors import DataError, Resumable, TrainingError
from autoft.trainer.distributed.group import BUFFER_BYTES, buffers
from autoft.trainer.run.session import resume, run
from autoft.trainer.runtime import environment
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.conftest import STEPS, weights_of
from tests.faults.test_memory import MemoryEnds
from tests.faults.test_resume import stopped_at

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")


@pytest.fixture(autouse=True)
def threads():
    """A run shares out the threads of its CPU among its processes; the next test has them all again."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_the_second(monkeypatch, folder: Path, code: str) -> None:
    """Have `code` run in the second process once it has joined; OBJECTIVES and `replace` are there."""
    folder.mkdir()
    lines = textwrap.indent(textwrap.dedent(code), " " * 4)
    (folder / "sitecustomize.py").write_text(
        "from autoft.trainer.distributed.group import Group\n"
        "real = Group.join\n"
        "def join(self, *args):\n"
        "    from dataclasses import replace\n"
        "    from autoft.trainer.objectives import OBJECTIVES\n"
        "    real(self, *args)\n"
        f"{lines}\n"
        "Group.join = join\n"
    )
    monkeypatch.syspath_prepend(folder)


def at_backward(number: int, act: str) -> str:
    """Code that does `act` in the second process when it comes to its backward `number`, those of the rehearsal too."""
    return f"""
        import os, torch
        loss, calls = OBJECTIVES["sft"].loss, []
        def compute_loss(model, batch, recipe, **words):
            calls.append(1)
            if len(calls) == {number}:
                {act}
            return loss(model, batch, recipe, **words)
        OBJECTIVES["sft"] = replace(OBJECTIVES["sft"], loss=compute_loss)
    """


def of_two(make_job, kind="lora", **fields):
    """The steps of a job for one process with twice the accumulation."""
    return make_job(kind, num_gpus=2, **{"accumulation": 1, **fields})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(job)`: (folder, result) of a run of it that nothing disturbs."""
    made = {}

    def of(job):
        key = str(replace(job, data=None))
        if key not in made:
            out = tmp_path_factory.mktemp("undisturbed") / "out"
            made[key] = out, run(job, out, plan_toml="")
        return made[key]

    return of


def assert_close(folder, expected):
    for name, value in load_file(next(folder.glob("*model.safetensors"))).items():
        torch.testing.assert_close(
            value, load_file(next(expected.glob("*model.safetensors")))[name], rtol=1e-3, atol=1e-5
        )


@pytest.fixture
def children():
    """`children()`: processes that this test has started and that still run.

    Processes of earlier tests in the same worker, such as multiprocessing's resource tracker, do not count.
    """
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def running() -> list[int]:
        now = psutil.Process().children(recursive=True)
        return [child.pid for child in now if child.pid not in before and child.status() != psutil.STATUS_ZOMBIE]

    return running


# What is learnt


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("lora", {"max_steps": None, "epochs": 2.0, "eval_rows": 7}),  # 33 rows: one is left for the last step
        ("lora", {"group_by_length": True, "accumulation": 2}),
        ("packed", {}),
        ("qlora", {}),
    ],
)
def test_two_learn_what_one_does(make_job, tmp_path, children, kind, fields):
    recipe = {"dropout": 0.0}
    two = of_two(make_job, kind, recipe=recipe, **fields)
    alone = make_job(kind, recipe=recipe, **{**fields, "accumulation": 2 * two.accumulation})
    one = run(alone, tmp_path / "one", plan_toml="")
    both = run(two, tmp_path / "two", plan_toml="")
    assert [step for step, _ in both.losses] == [step for step, _ in one.losses]
    assert [loss for _, loss in both.losses] == pytest.approx([loss for _, loss in one.losses], rel=1e-4)
    assert (both.tokens, both.trained_tokens) == (one.tokens, one.trained_tokens)
    assert "2 processes of" in both.hardware
    assert both.after.loss == pytest.approx(one.after.loss, rel=1e-3)
    assert_close(tmp_path / "two", tmp_path / "one")
    assert children() == []


def test_a_stopped_run_goes_on_to_the_same_weights_with_dropout_in_both(make_job, tmp_path, undisturbed, children):
    job = of_two(make_job)
    whole, result = undisturbed(job)
    out = tmp_path / "out"
    with pytest.raises(Resumable):
        run(job, out, plan_toml="", listener=stopped_at(3))
    assert children() == []
    assert resume(out, job).losses == result.losses
    assert weights_of(out) == weights_of(whole)


# What becomes of one of them


def test_memory_that_ends_in_the_second_costs_nothing_and_both_go_on_with_less(
    make_job, tmp_path, monkeypatch, undisturbed
):
    job = of_two(make_job, recipe={"dropout": 0.0}, accumulation=2)
    quiet, _ = undisturbed(job)
    # two in the rehearsal, two a step: in the midst of the second step
    in_the_second(monkeypatch, tmp_path / "site", at_backward(6, 'raise torch.OutOfMemoryError("CUDA out of memory")'))
    result = run(job, tmp_path / "out", plan_toml="")
    (event,) = result.events
    assert (event["event"], event["step"], event["micro_batch"]) == ("recovered", 2, 2)
    assert event["reason"] == "memory was exhausted in another process"
    assert_close(tmp_path / "out", quiet)


def test_memory_that_ends_in_the_first_is_no_other_matter(make_job, tmp_path, monkeypatch, undisturbed):
    job = of_two(make_job, recipe={"dropout": 0.0}, accumulation=2)
    quiet, _ = undisturbed(job)
    MemoryEnds(monkeypatch, rows=2, first=6)
    result = run(job, tmp_path / "out", plan_toml="")
    assert [(event["event"], event["micro_batch"]) for event in result.events] == [("recovered", 2)]
    assert_close(tmp_path / "out", quiet)


def test_one_that_ends_is_told_of_and_nothing_is_lost(make_job, tmp_path, monkeypatch, undisturbed, children):
    job = of_two(make_job)
    whole, _ = undisturbed(job)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        in_the_second(patch, tmp_path / "site", at_backward(1 + 4, "os.kill(os.getpid(), 9)"))
        with pytest.raises(Resumable) as ended:
            run(job, out, plan_toml="")
    assert ended.value.what == "process 2 of 2 has ended: exit code -9; the state after step 2 is kept"
    assert children() == []
    resume(out, job)
    assert weights_of(out) == weights_of(whole)


def test_one_that_ends_before_it_has_joined_is_told_of(make_job, tmp_path, monkeypatch, children):
    """Neither gloo nor NCCL ends the wait for one that will not come."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "from autoft.trainer.distributed.group import Group\n"
        "Group.join = lambda *_: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(Resumable, match="process 2 of 2 has ended: exit code -9; the state after step 0 is kept"):
        run(of_two(make_job), tmp_path / "out", plan_toml="")
    assert children() == []


def test_an_error_in_the_second_is_told_in_its_own_words(make_job, tmp_path, monkeypatch):
    act = 'raise RuntimeError("CUDA error: unspecified launch failure")'
    in_the_second(monkeypatch, tmp_path / "site", at_backward(1 + 4, act))
    with pytest.raises(
        Resumable, match="process 2 of 2 has ended: CUDA error: unspecified launch failure; the state after step"
    ):
        run(of_two(make_job), tmp_path / "out", plan_toml="")


def test_memory_that_is_not_enough_for_a_row_in_the_second_is_a_clear_end(make_job, tmp_path, monkeypatch):
    job = of_two(make_job, recipe={"dropout": 0.0})
    act = "del calls[-1:]; raise MemoryError()"
    in_the_second(monkeypatch, tmp_path / "site", at_backward(1 + 3, act))
    with pytest.raises(Resumable, match="process 2 of 2 has ended: out of memory at step 3, with one row at a time"):
        run(job, tmp_path / "out", plan_toml="")


def test_a_row_of_the_second_whose_loss_is_no_number_is_named(make_job, tmp_path, monkeypatch, tiny_model, data_file):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_model)("number 17", add_special_tokens=False)["input_ids"]
    in_the_second(
        monkeypatch,
        tmp_path / "site",
        f"""
        loss, calls, ids = OBJECTIVES["sft"].loss, [], {str(ids)[1:-1]!r}
        def compute_loss(model, batch, recipe, **words):
            calls.append(1)
            value = loss(model, batch, recipe, **words)
            return value * float("nan") if any(ids in str(row) for row in batch["input_ids"].tolist()) else value
        OBJECTIVES["sft"] = replace(OBJECTIVES["sft"], loss=compute_loss)
        """,
    )
    job = of_two(make_job, max_steps=None, epochs=2.0, eval_rows=0)
    with pytest.raises(TrainingError, match="stopped before the update") as ended:
        run(job, tmp_path / "out", plan_toml="")
    assert f"{data_file.name}:18" in ended.value.what
    rows = json.loads((unfinished(tmp_path / "out") / "not-finite.json").read_text())["rows"]
    assert [row["where"].rsplit(":", 1)[1] for row in rows] == ["18"]


def test_one_that_cannot_load_is_told_of(make_job, tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import autoft.trainer.run.setup\nautoft.trainer.run.setup.load = None\n")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(Resumable, match="process 2 of 2 has ended: 'NoneType' object is not callable"):
        run(of_two(make_job), tmp_path / "out", plan_toml="")


def test_data_that_change_while_they_are_read_are_refused(make_job, tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import autoft.trainer.run.fingerprint as i\ni.digest_of = lambda _: 'another'\n"
    )
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(DataError, match=r"data\.jsonl: has changed while the processes were reading it"):
        run(of_two(make_job), tmp_path / "out", plan_toml="")


def test_weights_that_have_come_apart_are_no_result(make_job, tmp_path, monkeypatch):
    last = at_backward(1 + STEPS, "next(p for p in model.parameters() if p.requires_grad).data.add_(1)")
    in_the_second(monkeypatch, tmp_path / "site", last)
    with pytest.raises(TrainingError, match="weights differ between processes"):
        run(of_two(make_job), tmp_path / "out", plan_toml="")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_none_outlives_the_first(make_job, tmp_path, number):
    """Ctrl-C goes to all the processes of a terminal."""
    job, out = of_two(make_job, max_steps=None, epochs=1000.0), tmp_path / "out"
    code = (
        "import sys; from pathlib import Path\n"
        "from autoft.trainer.runtime import environment; environment.prepare()\n"
        "from autoft.trainer.run.session import run; from autoft.trainer.job import Job\n"
        "from autoft.errors import AutoftError\n"
        f"try: run(Job.from_dict({job.to_dict()!r}), Path({str(out)!r}), plan_toml='')\n"
        "except AutoftError as error: sys.exit(error.exit_code)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], env=environment.of_child(), start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(unfinished(out).glob("checkpoints/step-0000000[2-9]")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (second,) = psutil.Process(first.pid).children()
    os.killpg(first.pid, number) if number == signal.SIGINT else first.kill()
    assert first.wait(60) == (4 if number == signal.SIGINT else -signal.SIGKILL)
    second.wait(30)


# The exchange


def test_gradients_that_go_together_are_neighbours_of_one_dtype():
    sizes = [1, BUFFER_BYTES - 1, 1, BUFFER_BYTES + 1, 2]
    assert buffers([("float32", size) for size in sizes]) == [[0, 1], [2], [3], [4]]
    assert buffers([("float32", 1), ("float32", 1), ("bfloat16", 1), ("float32", 1)]) == [[0, 1], [2], [3]]
    assert buffers([]) == []
