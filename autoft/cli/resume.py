"""`autoft resume`: take up a run that was stopped."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoft import render, training
from autoft.cli import options

if TYPE_CHECKING:
    from autoft.trainer.run.hosts import Hosts


@options.command(
    "Resume an interrupted run from its latest valid checkpoint, bit for bit.\n\n"
    "Damaged checkpoints are skipped and named.",
    examples=(
        "autoft resume my-adapter",
        "autoft resume runs/starter --json",
        "autoft resume my-adapter --accept-changes",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--accept-changes",
    is_flag=True,
    help="Resume even if data, plan, base or versions have changed.",
)
def command(folder: Path, accept_changes: bool, as_json: bool) -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.runtime.signals import ignore_hangup

    ignore_hangup()
    with training.among_hosts() as hosts:
        _resume(folder, hosts, accept_changes=accept_changes, as_json=as_json)


def _resume(folder: Path, hosts: Hosts | None, *, accept_changes: bool, as_json: bool) -> None:
    from autoft.trainer.storage.ownership import about_run
    from autoft.trainer.storage.run_folder import find_unfinished, unfinished

    out = find_unfinished(folder.absolute())
    from autoft.cli import run as run_command
    from autoft.planner.plan.record import read_plan
    from autoft.trainer.result import Predicted
    from autoft.trainer.run import session as trainer

    plan = read_plan(unfinished(out) / "plan.toml")
    about = about_run(unfinished(out))
    gpus = training.take_devices(plan, hosts.launch if hosts is not None else None)
    shown = folder.with_name(out.name)
    _go_to(about.get("started_in"))
    known = about.get("predicted")
    predicted = None if known is None else Predicted.from_dict(known)
    with run_command.display(plan, predicted, as_json=as_json) as listener:
        result = trainer.resume(out, plan.job, accept_changes=accept_changes, gpus=gpus, hosts=hosts, listener=listener)
    if predicted is not None:
        training.remember(plan, predicted, result, partial(render.console(stderr=True).print, markup=False))
    run_command.show(result, shown, as_json=as_json)


def _go_to(started_in: str | None) -> None:
    """To where the run was started: relative names in its plan mean what they meant."""
    if started_in is not None and Path(started_in).is_dir():
        os.chdir(started_in)
