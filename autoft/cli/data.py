"""`autoft data check`: what training data is, and what is wrong with it, before a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from autoft import render
from autoft.cli import options
from autoft.errors import DataError, OptionError


@click.group(
    cls=options.Actions,
    for_files="check",
    help="Check training data before a run. Every action takes --json, --offline and --debug.",
)
def command() -> None:
    pass


@options.command(
    "Check training data before a run, and write a cleaned copy.\n\n"
    "Finds broken rows by file:line, duplicates, rows in both splits, odd characters, keys and personal data (counted, "
    "never shown), and shows one example as the model sees it. Exits with 2 if a run would fail or be spoilt.",
    examples=(
        "autoft data check mine.jsonl",
        "autoft data check mine.jsonl --model qwen2.5-7b-instruct",
        "autoft data check mine.jsonl --fix clean.jsonl",
    ),
)
@click.argument("path")
@click.option("--model", metavar="M", help="Count this model's tokens, under its chat template.")
@click.option("--eval-data", metavar="PATH", help="Evaluation data; its rows are looked for in PATH.")
@click.option("--map", "mapping", multiple=True, metavar="ROLE=COLUMN", help="Map columns, as for `autoft plan`.")
@click.option(
    "--thinking",
    type=options.Choice(["auto", "on", "off"]),
    metavar="auto|on|off",
    help="Thinking mode of the chat template (default: auto).",
)
@click.option(
    "--fix",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write a cleaned copy and a report of dropped rows.",
)
def check(
    path: str,
    model: str | None,
    eval_data: str | None,
    mapping: tuple[str, ...],
    thinking: Literal["auto", "on", "off"] | None,
    out: Path | None,
    as_json: bool,
) -> int:
    if thinking is not None and model is None:
        raise OptionError("--thinking is of a model's chat template", fix=f"autoft data check {path} --model MODEL")
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.cli.show_data import show_report
    from autoft.trainer.data.check.examine import check as examine
    from autoft.trainer.data.check.fix import check_target, write_fixed

    if out is not None:
        check_target(out)
    with render.console(stderr=True).status("reading", spinner="line") as status:
        words = ",".join(mapping) or None
        checked = examine(
            path,
            eval_data,
            model,
            words,
            lambda rows: status.update(f"reading, {rows:,} rows"),
            thinking=thinking or "auto",
        )
        report = checked.report
        if out is not None:
            status.update(f"writing {out}")
            report = replace(report, fixed=write_fixed(checked, out))
    if as_json:
        options.print_json(report.to_dict())
    else:
        show_report(report, render.console())
    return 0 if report.trainable else DataError.exit_code


command.add_command(check, "check")
