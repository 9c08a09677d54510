"""`autoft run`: probe, plan, train, evaluate, save."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from autoft import render, training
from autoft.cli import internals, options, planning
from autoft.errors import OptionError

if TYPE_CHECKING:
    from autoft.cli.live import Display
    from autoft.planner.plan.record import Plan
    from autoft.trainer.data.prepare import Prepared
    from autoft.trainer.result import Predicted, RunResult
    from autoft.trainer.run.hosts import Hosts

RUNS = Path("runs")


@options.command(
    "Plan, train, evaluate and save, in one step.\n\n"
    "WHAT is a plan.toml, or a MODEL as for `autoft plan` together with --data. By default the starter: a real 135M "
    "model learns a bundled task in minutes, on CPU or GPU.",
    examples=(
        "autoft run",
        "autoft run qwen2.5-7b-instruct --data mine.jsonl",
        "autoft run plan.toml -o my-adapter",
    ),
)
@click.argument("what", required=False)
@planning.add(*planning.START, *planning.DATA, *planning.DEVICE, *planning.HOSTS, *planning.RECIPE, *planning.LIMITS)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the result (default: a new one in runs/).",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace a finished run, or run a plan that may not fit.",
)
def command(what: str | None, output: Path | None, force: bool, as_json: bool, **words: Any) -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.runtime.signals import ignore_hangup

    ignore_hangup()
    with training.among_hosts() as hosts:
        _run(what, output, hosts, words, force=force, as_json=as_json)


def _run(
    what: str | None, output: Path | None, hosts: Hosts | None, words: dict[str, Any], *, force: bool, as_json: bool
) -> None:
    from autoft.trainer.storage.run_folder import check_output, free_name

    training.see_one_gpu_where_nothing_forks()
    what = planning.named_model(what, words, fetches=True) or "starter"
    out = output or free_name(RUNS, Path(what).stem if what.endswith(".toml") else Path(what).name or "run")
    check_output(out, force=force)
    console = render.console(stderr=True)
    internals.tell_of_changes(console)
    if what.endswith(".toml"):
        plan, prepared = _from_file(Path(what), words, out, console, force=force)
    else:
        console.print(f"Planning {what}", markup=False)
        if what == "starter":
            words["data"] = words["data"] or "starter"
            _fetch_starter(console)
        if words["data"] is None:
            from autoft.trainer.data.files import TABLES, TEXTS, kind

            if kind(what) in (*TABLES, *TEXTS):
                raise OptionError(f"{what} is data, and no model is named", fix=f"autoft run MODEL --data {what}")
            raise OptionError("no data to train on", fix=f"autoft run {what} --data FILE")
        if hosts is not None:
            _pin(words, hosts)
        plan, prepared = planning.plan_to_train(planning.request(what, **words), out.absolute().parent)
    training.check_folder(plan, out, force=force)
    gpus = training.take_devices(plan, hosts.launch if hosts is not None else None)
    if not as_json:
        from autoft.cli.show_plan import show_plan

        show_plan(plan, console)
    shown = display(plan, training.predicted_by(plan), as_json=as_json)
    say = partial(console.print, markup=False)
    result = training.train(plan, prepared, out, gpus=gpus, hosts=hosts, display=shown, say=say, force=force)
    show(result, out, as_json=as_json)


def _pin(words: dict[str, Any], hosts: Hosts) -> None:
    """The plan is for as many processes as the launcher has started. Raises: OptionError."""
    launch = hosts.launch
    if words["hosts"] not in (None, launch.hosts):
        raise OptionError(
            f"--hosts {words['hosts']}, and the launcher has started {launch.size} processes on {launch.hosts}",
            fix="leave --hosts out: the launcher says how many",
        )
    words["hosts"] = launch.hosts
    words["settings"] = planning.pinned(words["settings"], {"num_gpus": launch.size})


def show(result: RunResult, out: Path, *, as_json: bool) -> None:
    """Show a finished run."""
    if as_json:
        options.print_json({"output": str(out), **result.to_dict()})
    else:
        from autoft.cli.show import show_result

        show_result(result, str(out), render.console())


def display(plan: Plan, predicted: Predicted | None, *, as_json: bool) -> Display:
    """What shows a run of `plan` while it goes."""
    from autoft.cli.live import Display

    workload, job = plan.workload, plan.job
    return Display(
        render.console(stderr=True),
        None if predicted is None else predicted.peak_bytes,
        total_tokens=round(job.epochs * workload.tokens) if workload is not None and not job.max_steps else None,
        gpu=job.device == "cuda",
        as_json=as_json,
    )


def _from_file(
    path: Path, words: dict[str, Any], out: Path, console: Console, *, force: bool
) -> tuple[Plan, Prepared | None]:
    """The plan of a file as it stands on this machine; of the options only those about data go with it."""
    from autoft.planner.plan.record import read_plan

    named = {
        "--prefer": "prefer",
        "--preset": "preset",
        "--gpu": "gpu",
        "--vram": "vram_gib",
        "--method": "method",
        "--seq-len": "seq_len",
        "--set": "settings",
        "--max-hours": "max_hours",
        "--max-memory": "max_memory_gib",
        "--max-energy-kwh": "max_energy_kwh",
        "--min-rank": "min_rank",
        "--from-adapter": "from_adapter",
        "--for": "served_by",
        "--hosts": "hosts",
        "--link": "link",
    }
    for option, name in named.items():
        if words[name]:
            raise OptionError(
                f"{option} does not go with a plan file: the plan decides that",
                fix="plan again with it, or leave it out",
            )
    planned = read_plan(path)
    data = {name: words[name] for name in ("data", "eval_data") if words[name] is not None}
    if words["mapping"]:
        data["mapping"] = ",".join(words["mapping"])
    job = replace(planned.job, **data)
    if job.data is None:
        raise OptionError(f"{path}: the plan names no data to train on", fix=f"autoft run {path} --data FILE")
    checked = planning.recheck(planned, job, out.absolute().parent, console, where=str(path), force=force)
    return checked.plan, checked.prepared


def _fetch_starter(console: Console) -> None:
    from autoft.trainer.sources.starter import starter_folder

    starter_folder(lambda text: console.print(text, markup=False))
