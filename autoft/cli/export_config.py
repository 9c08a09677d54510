"""`autoft export-config`: a plan as the configuration of another trainer."""

from __future__ import annotations

from pathlib import Path

import click

from autoft import render
from autoft.cli import options
from autoft.errors import OutputError, harmless
from autoft.planner.export import NAMES, exporter


@options.command(
    "Export PLAN, a plan.toml, as another trainer's configuration and data.\n\n"
    "Comments at the top list what that trainer does differently or cannot express.",
    examples=(
        "autoft export-config plan.toml --to axolotl -o axolotl.yaml",
        "autoft export-config plan.toml --to trl",
        "autoft export-config plan.toml --to unsloth -o train.py",
    ),
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--to", "tool", type=options.Choice(NAMES), required=True, help=f"The trainer: {', '.join(NAMES)}.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE, data beside it (default: print the configuration).",
)
@options.FORCE
def command(plan: Path, tool: str, output: Path | None, force: bool, as_json: bool) -> None:
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise OutputError(f"{output}: not a file that can be written", fix="-o a file in a folder that exists")
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.planner.export.write import export_config, write_export
    from autoft.planner.plan.record import read_plan

    out = output or Path(f"{plan.stem}-{tool}{exporter(tool).suffix}")
    export = export_config(read_plan(plan), tool, out, where=str(plan))
    if output is not None:
        for path in export.files:
            options.check_free(path, "-o", force=force)
        write_export(export)
    text = export.files[out]
    if as_json:
        written = [str(path) for path in export.files] if output is not None else []
        options.print_json(
            {"tool": tool, "files": written, "command": export.command, "notes": list(export.notes), "config": text}
        )
        return
    console = render.console(stderr=output is None)
    if output is None:
        click.echo(harmless(text), nl=False)
        console.print(f"Note: the data that it names is written with -o FILE, such as -o {out}", markup=False)
        return
    for note in export.notes:
        console.print(f"Note: {note}", markup=False)
    console.print(f"Next: {export.command}", style="bold", markup=False)
