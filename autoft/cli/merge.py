"""`autoft merge`: the adapter of a run, folded into its base."""

from __future__ import annotations

from pathlib import Path

import click

from autoft.cli import options
from autoft.cli.export import BASE, FORCE, run_export


@options.command(
    "Merge the adapter in DIR into its 16-bit base.\n\n"
    "Loads the result again and compares it with base and adapter before it is kept.",
    examples=(
        "autoft merge my-adapter -o my-model",
        "autoft merge my-adapter -o my-model --json",
        "autoft merge peft-adapter --base ./base-model -o my-model",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT", required=True, help="Write to this folder."
)
@BASE
@FORCE
@options.ACCEPT_CHANGES
def command(folder: Path, output: Path, base: str | None, force: bool, accept_changes: bool, as_json: bool) -> None:
    run_export(
        folder,
        kind="safetensors",
        quant=None,
        output=output,
        name=None,
        base=base,
        force=force,
        accept_changes=accept_changes,
        as_json=as_json,
    )
