"""`autoft resume`: take up a run that was stopped."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoft import render, training
from autoft.cli import options, planning
from autoft.errors import DoesNotFit, OptionError

if TYPE_CHECKING:
    from autoft.planner.plan.record import Plan
    from autoft.trainer.distributed.launched import Launch
    from autoft.trainer.run.hosts import Hosts


@options.command(
    "Resume an interrupted run from its latest valid checkpoint, bit for bit.\n\n"
    "Damaged checkpoints are skipped and named.",
    examples=(
        "autoft resume my-adapter",
        "autoft resume runs/starter --json",
        "autoft resume my-adapter --gpus 1",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--accept-changes",
    is_flag=True,
    help="Resume even if data, plan, base or versions have changed.",
)
@click.option(
    "--gpus",
    "num_gpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="Continue on another number of GPUs; each step keeps its rows.",
)
def command(folder: Path, accept_changes: bool, num_gpus: int | None, as_json: bool) -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.runtime.signals import ignore_hangup

    ignore_hangup()
    with training.among_hosts() as hosts:
        _resume(folder, hosts, accept_changes=accept_changes, num_gpus=num_gpus, as_json=as_json)


def _resume(folder: Path, hosts: Hosts | None, *, accept_changes: bool, num_gpus: int | None, as_json: bool) -> None:
    from autoft.trainer.storage.ownership import about_run
    from autoft.trainer.storage.run_folder import find_unfinished, unfinished

    out = find_unfinished(folder.absolute())
    from autoft.cli import run as run_command
    from autoft.planner.plan.record import read_plan
    from autoft.trainer.result import Predicted
    from autoft.trainer.run import session as trainer

    plan = read_plan(unfinished(out) / "plan.toml")
    about = about_run(unfinished(out))
    known = about.get("predicted")
    predicted = None if known is None else Predicted.from_dict(known)
    launch = hosts.launch if hosts is not None else None
    shown = folder.with_name(out.name)
    _go_to(about.get("started_in"))
    new_plan = None
    if num_gpus not in (None, plan.job.num_gpus):
        plan = _with_gpus(plan, num_gpus, launch, out)
        predicted = training.predicted_by(plan)
        new_plan = (plan.public().to_toml(), predicted)
    gpus = training.take_devices(plan, launch)
    with run_command.display(plan, predicted, as_json=as_json) as listener:
        result = trainer.resume(
            out,
            plan.job,
            accept_changes=accept_changes,
            new_plan=new_plan,
            gpus=gpus,
            hosts=hosts,
            listener=listener,
        )
    if predicted is not None:
        training.remember(plan, predicted, result, partial(render.console(stderr=True).print, markup=False))
    run_command.show(result, shown, as_json=as_json)


def _with_gpus(plan: Plan, num_gpus: int, launch: Launch | None, out: Path) -> Plan:
    """The plan for another number of GPUs, with as many sequences in an optimizer step.

    Raises: OptionError where they do not share these evenly; DoesNotFit; as planner/plan/recheck.py: recheck.
    """
    job = plan.job
    micro_batches = job.num_gpus * job.accumulation
    if micro_batches % num_gpus:
        counts = [str(count) for count in range(1, micro_batches + 1) if micro_batches % count == 0]
        raise OptionError(
            f"an optimizer step has {micro_batches} micro-batches, which {num_gpus} processes do not share evenly",
            fix=f"--gpus {' or '.join(counts)}",
        )
    if launch is not None and launch.size != num_gpus:
        raise OptionError(
            f"--gpus {num_gpus}, and the launcher has started {launch.size} processes", fix=f"--gpus {launch.size}"
        )
    hosts = 1 if launch is None else launch.hosts
    job = replace(job, num_gpus=num_gpus, accumulation=micro_batches // num_gpus, hosts=hosts)
    try:
        return planning.recheck(plan, job, out.parent, render.console(stderr=True), where=f"--gpus {num_gpus}").plan
    except DoesNotFit as error:
        raise DoesNotFit(error.what, fix="free memory, or resume without --gpus") from error


def _go_to(started_in: str | None) -> None:
    """To where the run was started: relative names in its plan mean what they meant."""
    if started_in is not None and Path(started_in).is_dir():
        os.chdir(started_in)
