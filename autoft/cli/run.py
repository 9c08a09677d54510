"""`autoft run`: probe, plan, train, evaluate, save."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from autoft import render
from autoft.cli import internals, options, planning
from autoft.errors import ModelError, OptionError, OutOfMemory, Resumable

if TYPE_CHECKING:
    from autoft.cli.live import Display
    from autoft.planner.plan.record import Plan
    from autoft.profiles.hardware import Gpu
    from autoft.trainer.data.prepare import Prepared
    from autoft.trainer.result import Predicted, RunResult

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
@planning.add(*planning.START, *planning.DATA, *planning.DEVICE, *planning.RECIPE, *planning.LIMITS)
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
    from autoft.trainer.storage.run_folder import check_output, free_name

    ignore_hangup()
    _see_one_gpu_where_nothing_forks()
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
        plan, prepared = planning.plan_to_train(planning.request(what, **words), out.absolute().parent)
    from autoft.trainer.storage.run_folder import output_bytes

    each = 4 if plan.job.recipe.method != "full" or plan.job.recipe.weights_dtype == "float32" else 2
    check_output(out, force=force, needed_bytes=output_bytes(plan.estimate.trainable_params, bytes_each=each))
    gpus = take_devices(plan)
    if not as_json:
        from autoft.cli.show_plan import show_plan

        show_plan(plan, console)
    predicted = _predicted(plan)
    with _memory_remembered(plan, predicted, console):
        result = _train(plan, predicted, prepared, out, gpus, force=force, as_json=as_json)
    conclude(plan, predicted, result, out, console, as_json=as_json)


def conclude(
    plan: Plan, predicted: Predicted | None, result: RunResult, out: Path, console: Console, *, as_json: bool
) -> None:
    """Remember and show a finished run."""
    if predicted is not None:
        recovered = any(event["event"] == "recovered" for event in result.events)
        # the plan's step ran out of memory, and what was measured is another's
        _remember(plan, predicted, None if recovered else result, console)
    if as_json:
        options.print_json({"output": str(out), **result.to_dict()})
    else:
        from autoft.cli.show import show_result

        show_result(result, str(out), render.console())


def _predicted(plan: Plan) -> Predicted:
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
    )


@contextmanager
def _memory_remembered(plan: Plan, predicted: Predicted, console: Console) -> Iterator[None]:
    """A run that memory has ended is remembered too."""
    try:
        yield
    except (OutOfMemory, Resumable) as error:
        if isinstance(error, OutOfMemory) or isinstance(error.__cause__, OutOfMemory):
            _remember(plan, predicted, None, console)
        raise


def _remember(plan: Plan, predicted: Predicted, result: RunResult | None, console: Console) -> None:
    """Keep predicted beside measured for later plans; result: None where the run ran out of memory."""
    from autoft.planner.history.past_runs import remember
    from autoft.profiles.detect import detect

    for note in remember(plan, predicted, detect(), result):
        console.print(f"Note: {note}", markup=False)


def _train(
    plan: Plan,
    predicted: Predicted,
    prepared: Prepared | None,
    out: Path,
    gpus: list[str],
    *,
    force: bool,
    as_json: bool,
) -> RunResult:
    from autoft.trainer.run.session import run

    with display(plan, predicted, as_json=as_json) as listener:
        return run(
            plan.job,
            out,
            plan_toml=plan.public().to_toml(),
            predicted=predicted,
            prepared=prepared,
            force=force,
            gpus=gpus,
            listener=listener,
        )


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
    console.print(f"Checking {path}", markup=False)
    from autoft.profiles.detect import detect

    hardware, on_gpu = detect(out.absolute().parent), job.device == "cuda"
    with planning.rare_collections() if on_gpu else planning.rehearsing():
        from autoft.planner.plan.recheck import recheck

        checked = recheck(planned, job, hardware, where=str(path), force=force, apart=on_gpu)
    for note in checked.notes:
        console.print(f"Note: {note}", markup=False)
    return checked.plan, checked.prepared


def _fetch_starter(console: Console) -> None:
    from autoft.trainer.sources.starter import starter_folder

    starter_folder(lambda text: console.print(text, markup=False))


def _see_one_gpu_where_nothing_forks() -> None:
    """On Windows planning starts CUDA in this process, after which it is too late to choose a GPU."""
    from autoft.planner.search.parallel import can_fork

    if can_fork():
        return
    from autoft.profiles.detect import detect

    gpus = detect().gpus
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = uuids(gpus, 1)[0]


def take_devices(plan: Plan) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to be for each process of the run: the GPUs that the plan is for, one for each.

    For this process, the first, it is set already: with several to be seen, PyTorch would use them all. Empty where
    there is nothing to choose.
    Raises: ModelError when the plan wants more than PyTorch can reach here.
    """
    from autoft.profiles.detect import detect
    from autoft.trainer.runtime.environment import hide_gpus

    if plan.job.device != "cuda":
        hide_gpus()
        return []

    gpus = detect().gpus
    taken = uuids(gpus, plan.job.num_gpus)
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
            fix="run it there, or plan again with --set num_gpus=1",
        )
    return taken
