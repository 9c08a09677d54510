"""Rehearsals in forked processes: many at once, or apart from a process that will train on a GPU."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch

from autoft.cli import planning
from autoft.errors import DoesNotFit
from autoft.planner.plan.make import make_plan
from autoft.planner.request import Request
from autoft.planner.search import parallel
from autoft.profiles.detect import detect
from autoft.trainer.runtime.environment import hidden_gpus

pytestmark = pytest.mark.skipif(not parallel.can_fork(), reason="processes do not fork here")


def visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_apart_no_gpu_is_visible_and_here_they_stay_visible(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    pid, seen = parallel.apart(lambda: (os.getpid(), visible()))
    assert (pid != os.getpid(), seen, visible()) == (True, "", "0,1")


def test_apart_rehearsals_may_still_be_spread(monkeypatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    both_are_there = multiprocessing.get_context("fork").Barrier(2)  # or the quicker process takes every item

    def worker(_: int) -> int:
        both_are_there.wait(timeout=60)
        return os.getpid()

    pids = parallel.apart(lambda: list(parallel.spread(worker, range(8), fewest=4)))
    assert len(set(pids)) == 2
    assert os.getpid() not in pids


def test_nothing_forks_where_cuda_is_at_work(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert set(parallel.spread(lambda _: os.getpid(), range(8), fewest=1)) == {os.getpid()}
    assert parallel.apart(os.getpid) == os.getpid()


def test_an_error_apart_is_raised_here() -> None:
    def refuse() -> None:
        raise DoesNotFit("nothing fits", fix="--seq-len 512")

    with pytest.raises(DoesNotFit, match="nothing fits") as refused:
        parallel.apart(refuse)
    assert refused.value.fix == "--seq-len 512"


def test_a_plan_made_apart_is_the_same(tiny_model, data_file) -> None:
    request = Request(model=str(tiny_model), data=str(data_file), gpu="rtx-3060")
    hardware = detect()
    here, prepared = make_plan(request, hardware)
    apart, prepared_too = make_plan(request, hardware, apart=True)
    assert apart == here
    assert prepared is not None
    assert prepared_too is not None
    assert prepared_too.train.examples == prepared.train.examples


@pytest.mark.parametrize("setting", [None, "1", ""])
def test_planning_hides_the_gpus_and_shows_them_again(monkeypatch, setting) -> None:
    if setting is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    for hidden in (hidden_gpus, planning.rehearsing):
        with hidden():
            assert visible() == ""
        assert visible() == setting
