"""`autoft plan`: the best fine-tune of a model that this machine can run, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autoft import render
from autoft.cli import options, planning, what_if
from autoft.errors import OutputError


@options.command(
    "Find the best fine-tune of MODEL that this machine can run, and say why.\n\n"
    "MODEL is a hub id, a local folder, a .gguf file, a name from `autoft profiles models`, or starter."
)
@click.argument("model")
@planning.add(*planning.DATA, *planning.DEVICE, *planning.RECIPE, *what_if.OPTIONS)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the plan as TOML.")
def command(model: str, output: Path | None, as_json: bool, **words: Any) -> int | None:
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise OutputError(f"{output}: not a file that can be written", fix="-o a file in a folder that exists")
    if words["data"] is None and model == "starter":
        words["data"] = "starter"
    answered = what_if.answer(model, words, output=output, as_json=as_json)
    if answered is not None:
        return answered
    plan, _ = planning.plan(planning.request(model, **words))
    if output is not None:
        from autoft.planner.plan_file import write_plan

        write_plan(plan, output)
    if as_json:
        options.print_json(plan.to_dict())
        return None
    from autoft.cli.show import show_plan

    console = render.console()
    show_plan(plan, console)
    run = f"autoft run {output or model}" + ("" if words["data"] else " --data FILE")
    console.print(f"Next: {run}", style="bold", markup=False)
    return None
