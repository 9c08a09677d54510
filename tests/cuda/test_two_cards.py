"""Two cards: a run takes one of them or both, and the end of one process is the clear end of the run."""

from __future__ import annotations

import socket
import textwrap

import pytest

from tests.cuda.runs import run, weights_of

# What is done to the second process. Its Python runs it before anything else; the stand-in's own is run first.
SITE = """
import os, sys
here = sys.path.index(os.path.dirname(__file__))
following = next(path for each in sys.path[here + 1:] if os.path.exists(path := each + "/sitecustomize.py"))
exec(compile(open(following).read(), following, "exec"), {{"__name__": "sitecustomize", "__file__": following}})
if "autoft.trainer.run.worker" in sys.orig_argv:
    from autoft.trainer.distributed.group import Group
    join = Group.join
{code}
"""
ENDS = {
    "before it joins": "def joined(*_):\n    os.kill(os.getpid(), 9)\nGroup.join = joined",
    "while it joins": ("import torch.distributed as dist\ndist.all_reduce = lambda *_, **__: os.kill(os.getpid(), 9)"),
    "in the rehearsal": (
        "def joined(self, *words):\n    join(self, *words)\n    os.kill(os.getpid(), 9)\nGroup.join = joined"
    ),
    "with an error": (
        "def joined(self, *words):\n    join(self, *words)\n    raise IndexError('tuple index out of range')\n"
        "Group.join = joined"
    ),
    "in a step": (
        "step = Group.sum_gradients\n"
        "def summed(self, parameters, calls=[]):\n    calls.append(1)\n"
        "    if len(calls) == 4:\n        os.kill(os.getpid(), 9)\n    step(self, parameters)\n"
        "Group.sum_gradients = summed"
    ),
}


def test_a_run_on_one_of_two_cards_sees_that_one_alone(on_card, tiny_model, data_file, tmp_path):
    card = on_card("rtx3090", gpus=2, truth=True)
    done = card.warm(*run(tiny_model, data_file, tmp_path / "out", num_gpus=1))
    assert done.code == 0, done.err
    assert {event.device for event in done.contexts} == {0}


def test_two_cards_learn_what_one_does(on_card, tiny_model, data_file, tmp_path):
    card = on_card("rtx3090", gpus=2, truth=True)
    two = card.warm(*run(tiny_model, data_file, tmp_path / "two", num_gpus=2))
    assert two.code == 0, two.err
    assert two.json["hardware"] == "2 x NVIDIA GeForce RTX 3090"
    assert two.json["after"]["loss"] < two.json["before"]["loss"]
    one = card.warm(*run(tiny_model, data_file, tmp_path / "one", num_gpus=1, accumulation=2))
    assert two.json["losses"] == [[step, pytest.approx(loss, rel=1e-2)] for step, loss in one.json["losses"]]


def test_torchrun_gives_each_process_a_card(on_card, tiny_model, data_file, tmp_path):
    card = on_card("rtx3090", gpus=2, truth=True)
    settings = {"gradient_checkpointing": "true", "streamed_layers": 2}
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, "-m", "autoft")
    launched = card.python(*launcher, *run(tiny_model, data_file, tmp_path / "launched", **settings))
    assert launched.code == 0, launched.err
    assert len(launched.contexts) == 2  # each process sees its own card alone, and NCCL refuses two of one
    here = card.warm(*run(tiny_model, data_file, tmp_path / "here", num_gpus=2, **settings))
    assert here.code == 0, here.err
    assert weights_of(tmp_path / "launched") == weights_of(tmp_path / "here")


def test_a_plan_for_two_cards_is_for_one_process_each(on_card, tiny_model, data_file):
    plan = on_card("rtx3090", gpus=2)("plan", tiny_model, "--data", data_file, "--set", "num_gpus=2", "--json")
    assert plan.code == 0, plan.err
    assert plan.json["job"]["num_gpus"] == 2
    assert plan.contexts == []


@pytest.mark.parametrize("when", ENDS)
def test_the_loss_of_one_process_ends_the_other_with_one_line(on_card, tiny_model, data_file, tmp_path, when):
    site = tmp_path / "site"
    site.mkdir()
    code = textwrap.indent(ENDS[when], " " * 4)
    (site / "sitecustomize.py").write_text(SITE.format(code=code), encoding="utf-8")
    card = on_card("rtx3090", gpus=2, truth=True)
    env = {"PYTHONPATH": f"{site}:{card.environment['PYTHONPATH']}"}
    done = card.warm(*run(tiny_model, data_file, tmp_path / "out", num_gpus=2), env=env)
    assert done.code == 4, done.err
    reason = "tuple index out of range" if when == "with an error" else "exit code -9"
    step = 2 if when == "in a step" else 0
    assert f"Error: process 2 of 2 has ended: {reason}; the state after step {step} is kept" in done.err
    assert f"To fix: autoft resume {tmp_path / 'out'}" in done.err
    if when == "in a step":
        resumed = card.warm("resume", tmp_path / "out", "--json")
        assert resumed.code == 0, resumed.err
        quiet = card.warm(*run(tiny_model, data_file, tmp_path / "quiet", num_gpus=2))
        assert quiet.code == 0, quiet.err
        assert weights_of(tmp_path / "out") == weights_of(tmp_path / "quiet")


SAVE = """
import torch
from autoft.trainer.runtime.randomness import random_state
torch.cuda.init()
torch.manual_seed(7)
torch.rand(3, device="cuda")
state = random_state()
torch.save({**state, "cuda": torch.cuda.get_rng_state_all()}, "older.pt")  # as up to autoft 0.1
torch.save(state, "state.pt")
print(torch.cuda.get_rng_state().sum().item())
"""
LOAD = """
import sys, torch
from autoft.trainer.runtime.randomness import set_random_state
torch.cuda.init()
set_random_state(torch.load(sys.argv[1], weights_only=False))
print(torch.cuda.get_rng_state().sum().item())
"""


@pytest.mark.parametrize("name", ["state.pt", "older.pt"])
def test_random_numbers_of_a_process_that_saw_two_cards_go_on_in_one_that_sees_one(on_card, name):
    two = on_card("rtx3090", gpus=2)
    saved = two.python("-c", SAVE)
    loaded = on_card("rtx3090", gpus=1).python("-c", LOAD, two.folder / name)
    assert loaded.code == 0, loaded.err
    assert loaded.out == saved.out != ""
