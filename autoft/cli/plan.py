"""`autoft plan`: the best fine-tune of a model that this machine can run, and why."""

from __future__ import annotations

from pathlib import Path

import click

from autoft import render
from autoft.cli import options, planning
from autoft.errors import OutputError


@options.command(
    "Find the best fine-tune of MODEL that this machine can run, and say why.\n\n"
    "MODEL is a hub id, a local folder, a .gguf file, a name from `autoft profiles models`, or starter."
)
@click.argument("model")
@planning.add(*planning.DATA, *planning.DEVICE, *planning.RECIPE)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the plan as TOML.")
def command(
    model: str,
    data: str | None,
    eval_data: str | None,
    prefer: str,
    gpu: str | None,
    vram_gib: float | None,
    method: str | None,
    seq_len: int | None,
    settings: tuple[str, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise OutputError(f"{output}: not a file that can be written", fix="-o a file in a folder that exists")
    data = "starter" if data is None and model == "starter" else data
    wanted = planning.request(
        model,
        data=data,
        eval_data=eval_data,
        prefer=prefer,
        gpu=gpu,
        vram_gib=vram_gib,
        method=method,
        seq_len=seq_len,
        settings=settings,
    )
    plan, _ = planning.plan(wanted)
    if output is not None:
        from autoft.planner.plan_file import write_plan

        write_plan(plan, output)
    if as_json:
        options.print_json(plan.to_dict())
        return
    from autoft.cli.show import show_plan

    console = render.console()
    show_plan(plan, console)
    run = f"autoft run {output or model}" + ("" if data or model == "starter" else " --data FILE")
    console.print(f"Next: {run}", style="bold", markup=False)
