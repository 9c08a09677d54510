"""`autoft eval`: how good is a finished run, beside its base?"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from autoft import render
from autoft.cli import options
from autoft.errors import OptionError
from autoft.trainer.result import Form

FORMS: tuple[str, ...] = get_args(Form)
MODELS = {
    "before": "the base",
    "after": "the trained model",
    "merged": "the merged model",
    "nf4": "the model in 4 bits",
    "int8": "the model in 8 bits",
}


@options.command(
    "Evaluate the model in DIR, a folder written by `autoft run`, beside its base.\n\n"
    "Uses the rows that the run held out, or those of --data.",
    examples=(
        "autoft eval my-adapter",
        "autoft eval my-adapter --data test.jsonl",
        "autoft eval my-adapter --rows 50 --json",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--data", metavar="PATH|ID", help="Evaluate on these rows instead.")
@click.option(
    "--map", "mapping", multiple=True, metavar="ROLE=COLUMN", help="Map columns of --data, as for `autoft run`."
)
@click.option(
    "--rows", type=click.IntRange(min=1), metavar="N", help="Evaluate at most N rows (default: as many as the run)."
)
@click.option(
    "--also",
    "forms",
    multiple=True,
    type=options.Choice(FORMS),
    help="Judge the merged or quantized model too (repeatable).",
)
@options.ACCEPT_CHANGES
def command(
    folder: Path,
    data: str | None,
    mapping: tuple[str, ...],
    rows: int | None,
    forms: tuple[Form, ...],
    accept_changes: bool,
    as_json: bool,
) -> None:
    if mapping and data is None:
        raise OptionError(
            "--map goes with --data: the run knows the columns of its own", fix="leave it out, or add --data"
        )
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.evaluation.judge import judge

    console = render.console(stderr=True)
    with console.status(f"Loading {folder}") as status:
        judgement = judge(
            folder,
            data=data,
            mapping=",".join(mapping) or None,
            most=rows,
            forms=tuple(dict.fromkeys(forms)),
            accept_changes=accept_changes,
            watch=lambda which, done, total: status.update(f"Evaluating {MODELS[which]}: {done} of {total} rows"),
            tell=lambda text: console.print(f"Note: {text}", markup=False),
        )
    if as_json:
        options.print_json({"run": str(folder), **judgement.to_dict()})
    else:
        from autoft.cli.show import show_judgement

        show_judgement(judgement, render.console())
