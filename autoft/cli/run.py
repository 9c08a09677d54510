"""`autoft run`: probe, plan, train, evaluate, save."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoft import render
from autoft.cli import options, planning
from autoft.errors import Interrupted, ModelError, OptionError

if TYPE_CHECKING:
    from autoft.planner.plan_file import Plan
    from autoft.trainer.prepare import Prepared
    from autoft.trainer.result import RunResult

RUNS = Path("runs")


@options.command(
    "Plan, train, evaluate and save, in one shot.\n\n"
    "WHAT is a plan.toml, or a MODEL as for `autoft plan` with --data. Without it, the starter: a real 135M model "
    "learns a bundled task in minutes, on CPU or GPU."
)
@click.argument("what", default="starter")
@planning.add(*planning.DATA, *planning.DEVICE, *planning.RECIPE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the result. Default: a new one in runs/.",
)
@click.option("--force", is_flag=True, help="Replace a finished run in the output folder.")
def command(
    what: str,
    data: str | None,
    eval_data: str | None,
    prefer: str,
    gpu: str | None,
    vram_gib: float | None,
    method: str | None,
    seq_len: int | None,
    settings: tuple[str, ...],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from autoft.trainer import environment

    environment.prepare()
    from autoft.trainer.output import check_output, free_name

    out = output or free_name(RUNS, Path(what).stem if what.endswith(".toml") else Path(what).name or "run")
    check_output(out, force=force)
    console = render.console(stderr=True)
    if what.endswith(".toml"):
        given = {"--gpu": gpu, "--vram": vram_gib, "--method": method, "--seq-len": seq_len, "--set": settings}
        _refuse(given, "the plan decides that")
        plan, prepared = _from_file(Path(what), data, eval_data)
    else:
        console.print(f"Planning {what}", markup=False)
        if what == "starter":
            data = data or "starter"
            _fetch_starter(console)
        if data is None:
            raise OptionError("no data to train on", fix=f"autoft run {what} --data FILE")
        wanted = planning.request(
            what,
            data=data,
            eval_data=eval_data,
            prefer=prefer,
            gpu=gpu,
            vram_gib=vram_gib,
            method=method,
            seq_len=seq_len,
            settings=settings,
        )
        plan, prepared = planning.plan(wanted, out.absolute().parent)
    from autoft.trainer.run import output_bytes

    check_output(out, force=force, needed_bytes=output_bytes(plan.estimate.trainable_params))
    _take_device(plan)
    if not as_json:
        from autoft.cli.show import show_plan

        show_plan(plan, console)
    result = _train(plan, prepared, out, force=force)
    if as_json:
        options.print_json({"output": str(out), **result.to_dict()})
    else:
        from autoft.cli.show import show_result

        shown = render.console()
        show_result(result, str(out), shown)


def _train(plan: Plan, prepared: Prepared | None, out: Path, *, force: bool) -> RunResult:
    from autoft.cli.live import Display
    from autoft.trainer.result import Predicted
    from autoft.trainer.run import run

    estimate = plan.estimate
    predicted = Predicted(
        peak_bytes=estimate.peak_allocated_bytes,
        step_time_lower_s=estimate.step_time_s.lower * plan.job.accumulation,
        step_time_upper_s=estimate.step_time_s.upper * plan.job.accumulation,
        method=estimate.method,
    )
    with Display(render.console(stderr=True), predicted.peak_bytes) as display:
        try:
            return run(
                plan.job,
                out,
                plan_toml=plan.to_toml(),
                predicted=predicted,
                prepared=prepared,
                force=force,
                listener=display,
            )
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted: {out} was not written", fix="run again to start over") from None


def _from_file(path: Path, data: str | None, eval_data: str | None) -> tuple[Plan, Prepared | None]:
    import dataclasses

    from autoft.planner.plan_file import read_plan

    plan = read_plan(path)
    if data is not None or eval_data is not None:
        job = dataclasses.replace(plan.job, data=data or plan.job.data, eval_data=eval_data or plan.job.eval_data)
        plan = dataclasses.replace(plan, job=job)
    if plan.job.data is None:
        raise OptionError(f"{path}: the plan names no data to train on", fix=f"autoft run {path} --data FILE")
    return plan, None


def _refuse(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value:
            raise OptionError(f"{name} does not go with a plan file: {why}", fix="plan again with it, or leave it out")


def _fetch_starter(console: object) -> None:
    from autoft.trainer.starter import starter_folder

    starter_folder(lambda text: console.print(text, markup=False))  # type: ignore[attr-defined]


def _take_device(plan: Plan) -> None:
    """Make the GPU with the most free memory the only one that is visible: with several, PyTorch would use them all.

    Raises: ModelError when the plan wants a GPU and PyTorch can reach none here.
    """
    if plan.job.device == "cuda":
        from autoft.profiles.detect import detect

        gpus = detect().gpus
        chosen = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
        if len(gpus) > 1 and chosen is not None and chosen.uuid is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = chosen.uuid
        import torch

        if not torch.cuda.is_available():
            raise ModelError(
                f"the plan is for {plan.target}, and PyTorch finds no GPU here", fix="run it there, or --gpu cpu"
            )
