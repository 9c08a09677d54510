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
    "Uses the rows that the run held out, those of --data, or tasks of lm-eval.",
    examples=(
        "autoft eval my-adapter",
        "autoft eval my-adapter --data test.jsonl",
        "autoft eval my-adapter --tasks arc_easy,hellaswag --rows 200",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--data", metavar="PATH|ID", help="Evaluate on these rows instead.")
@click.option(
    "--map", "mapping", multiple=True, metavar="ROLE=COLUMN", help="Map columns of --data, as for `autoft run`."
)
@click.option("--tasks", metavar="NAMES", help="Evaluate tasks of lm-eval instead, with commas between them.")
@click.option("--task-dir", metavar="DIR", type=click.Path(path_type=Path), help="Add lm-eval tasks of your own.")
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
    tasks: str | None,
    task_dir: Path | None,
    rows: int | None,
    forms: tuple[Form, ...],
    accept_changes: bool,
    as_json: bool,
) -> None:
    if mapping and data is None:
        raise OptionError(
            "--map goes with --data: the run knows the columns of its own", fix="leave it out, or add --data"
        )
    if task_dir is not None and tasks is None:
        raise OptionError("--task-dir goes with --tasks", fix="add --tasks NAMES, or leave it out")
    from autoft.trainer.runtime import environment

    environment.prepare()
    if tasks is not None:
        if data is not None or forms:
            raise OptionError("--tasks has rows of its own: not with --data or --also", fix="run it by itself")
        _tasks(folder, tasks, task_dir, rows, accept_changes=accept_changes, as_json=as_json)
        return
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


def _tasks(
    folder: Path, tasks: str, task_dir: Path | None, rows: int | None, *, accept_changes: bool, as_json: bool
) -> None:
    """Evaluate by lm-eval, whose progress goes to stderr."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise OptionError("--tasks: no task is named", fix="--tasks arc_easy,hellaswag")
    from autoft.trainer.evaluation.tasks import judge_tasks

    console = render.console(stderr=True)
    scores = judge_tasks(
        folder,
        names,
        task_folder=task_dir,
        most=rows,
        accept_changes=accept_changes,
        watch=lambda which: console.print(f"Evaluating {MODELS[which]}", markup=False),
        tell=lambda text: console.print(f"Note: {text}", markup=False),
    )
    if as_json:
        options.print_json({"run": str(folder), "tasks": scores.to_dict()})
    else:
        from autoft.cli.show import show_tasks

        show_tasks(scores, render.console())
