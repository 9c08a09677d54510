"""How does a plan become a run? Its GPUs are taken, it trains, and what it took is remembered for later plans."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.errors import ModelError, OptionError, OutOfMemory, Resumable

if TYPE_CHECKING:
    from autoft.planner.plan.record import Plan
    from autoft.profiles.hardware import Gpu
    from autoft.trainer.data.prepare import Prepared
    from autoft.trainer.distributed.launched import Launch
    from autoft.trainer.events import Listener
    from autoft.trainer.job import Job
    from autoft.trainer.result import Predicted, RunResult
    from autoft.trainer.run.hosts import Hosts

Say = Callable[[str], None]  # takes a line for the user


def see_one_gpu_where_nothing_forks() -> None:
    """On Windows planning starts CUDA in this process, after which it is too late to choose a GPU."""
    from autoft.planner.search.parallel import can_fork

    if can_fork():
        return
    from autoft.profiles.detect import detect

    gpus = detect().gpus
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = uuids(gpus, 1)[0]


@contextmanager
def among_hosts() -> Iterator[Hosts | None]:
    """The processes that a launcher has started beside this one, which wait from here on; None where this is alone.

    The first of them goes on from here, the others train with it and end.
    Raises: OptionError, TrainingError.
    """
    from autoft.trainer.distributed.launched import forget_launcher, launched

    launch = launched()
    forget_launcher()
    if launch is None:
        yield None
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a host that is gone is told in words of ours
    from autoft.trainer.run.hosts import Hosts

    if launch.rank:
        from autoft.trainer.run.worker import follow

        follow(launch, partial(_take_own_gpu, launch))
    with Hosts(launch) as hosts:
        yield hosts


def _take_own_gpu(launch: Launch, job: Job) -> None:
    from autoft.profiles.detect import detect
    from autoft.trainer.runtime.environment import hide_gpus

    if job.device != "cuda":
        hide_gpus()
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = of_launch(detect().gpus, launch)[launch.local_rank]


def of_launch(gpus: Sequence[Gpu], launch: Launch) -> list[str]:
    """One for each process of this host, in the order of the machine: what is free changes as they begin.

    Raises: ModelError where there are fewer.
    """
    from autoft.planner.estimator.target import like

    alike = like(gpus)
    taken = [gpu.uuid for gpu in gpus if gpu in alike and gpu.uuid is not None]
    if len(taken) < launch.local_size:
        raise ModelError(
            f"{launch.local_size} processes were started on this host, and GPUs of one kind here: {len(taken)}",
            fix=f"--nproc-per-node {max(1, len(taken))}, or all GPUs visible to each process",
        )
    return taken[: launch.local_size]


def take_devices(plan: Plan, launch: Launch | None = None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to be for each process of the run: the GPUs that the plan is for, one for each.

    For this process, the first, it is set already: with several to be seen, PyTorch would use them all. Empty where
    there is nothing to choose.
    Raises: ModelError when the plan wants more than PyTorch can reach here.
    """
    from autoft.profiles.detect import detect
    from autoft.trainer.runtime.environment import hide_gpus

    if launch is None and plan.job.hosts > 1:
        each = plan.job.num_gpus // plan.job.hosts
        raise OptionError(
            f"the plan is for {plan.job.hosts} hosts, and a launcher has to start it on each",
            fix=f"torchrun --nnodes {plan.job.hosts} --nproc-per-node {each} -m autoft run: docs/several-machines.md; "
            "or resume a run on this one with --gpus N",
        )
    if plan.job.device != "cuda":
        hide_gpus()
        return []

    gpus = detect().gpus
    taken = uuids(gpus, plan.job.num_gpus) if launch is None else of_launch(gpus, launch)
    # PyTorch compares an index with the number of cards, and finds no MIG instance by one beyond it
    if taken and (len(gpus) > 1 or taken[0].startswith("MIG-")):
        os.environ["CUDA_VISIBLE_DEVICES"] = taken[0]
    import torch

    if not torch.cuda.is_available():
        raise ModelError(
            f"the plan is for {plan.target}, and PyTorch finds no GPU here", fix="run it there, or --gpu cpu"
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch that was built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"PyTorch cannot use {plan.target}: {reason}", fix="autoft doctor names the cause; or --gpu cpu"
        ) from error
    return taken


def uuids(gpus: Sequence[Gpu], num_gpus: int) -> list[str]:
    """Of so many of `gpus`, all of one kind, the one with the most free memory first; empty where one has none.

    Raises: ModelError where there are not so many.
    """
    from autoft.planner.estimator.target import like

    taken = [gpu.uuid for gpu in like(gpus)[:num_gpus] if gpu.uuid is not None]
    if num_gpus > 1 and len(taken) < num_gpus:
        raise ModelError(
            f"the plan is for {num_gpus} GPUs of one kind, and there are {len(taken)} here",
            fix="run it there, plan again with --set num_gpus=1, or resume a run with --gpus 1",
        )
    return taken


def predicted_by(plan: Plan) -> Predicted:
    """What the run is compared with: the plan's memory, and the time of a mean step."""
    from autoft.trainer.result import Predicted

    estimate = plan.estimate
    lower, upper = (bound * plan.job.accumulation for bound in (estimate.step_time_s.lower, estimate.step_time_s.upper))
    if plan.run_time_s is not None and plan.steps:
        # what is measured is the mean over all rows, of which most are shorter than the longest
        lower, upper = plan.run_time_s.lower / plan.steps, plan.run_time_s.upper / plan.steps
    return Predicted(
        peak_bytes=estimate.peak_allocated_bytes,
        step_time_lower_s=lower,
        step_time_upper_s=upper,
        method=estimate.method,
        phases=estimate.phases,
        host_bytes=estimate.ram_to_train if plan.job.recipe.streamed_layers else None,
    )


def check_folder(plan: Plan, out: Path, *, force: bool) -> None:
    """Raises: OutputError where the run's result has no room at `out`, or another result is there without force."""
    from autoft.trainer.storage.run_folder import check_output, output_bytes

    recipe, estimate = plan.job.recipe, plan.estimate
    each = 4 if recipe.method != "full" or recipe.weights_dtype == "float32" else 2
    params = estimate.trainable_params if recipe.method == "full" else estimate.total_params - plan.shape.total_params
    check_output(out, force=force, needed_bytes=output_bytes(params, bytes_each=each))


def train(
    plan: Plan,
    prepared: Prepared | None,
    out: Path,
    *,
    gpus: Sequence[str],
    hosts: Hosts | None = None,
    display: AbstractContextManager[Listener],
    say: Say,
    force: bool = False,
) -> RunResult:
    """Train as planned and remember what it took; a run that memory has ended is remembered too.

    gpus: from `take_devices`. hosts: from `among_hosts`. display: gives what listens to the run, and ends before
    anything is said.
    Raises: as trainer/run/session.py: run.
    """
    from autoft.trainer.run.session import run

    predicted = predicted_by(plan)
    try:
        with display as listener:
            result = run(
                plan.job,
                out,
                plan_toml=plan.public().to_toml(),
                predicted=predicted,
                prepared=prepared,
                force=force,
                gpus=gpus,
                hosts=hosts,
                listener=listener,
            )
    except (OutOfMemory, Resumable) as error:
        if isinstance(error, OutOfMemory) or isinstance(error.__cause__, OutOfMemory):
            _remember(plan, predicted, None, say)
        raise
    remember(plan, predicted, result, say)
    return result


def remember(plan: Plan, predicted: Predicted, result: RunResult, say: Say) -> None:
    """Keep predicted beside measured for later plans."""
    recovered = any(event["event"] == "recovered" for event in result.events)
    # the plan's step ran out of memory, and what was measured is another's
    _remember(plan, predicted, None if recovered else result, say)


def _remember(plan: Plan, predicted: Predicted, result: RunResult | None, say: Say) -> None:
    """result: None where the run ran out of memory."""
    from autoft.planner.history import past_runs
    from autoft.profiles.detect import detect

    for note in past_runs.remember(plan, predicted, detect(), result):
        say(f"Note: {note}")
