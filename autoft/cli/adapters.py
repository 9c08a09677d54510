"""`autoft adapters`: what adapters are, and several of them made into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.cli import options
from autoft.errors import OptionError, harmless
from autoft.units import count, size

if TYPE_CHECKING:
    from autoft.trainer.export.combine import Combined
    from autoft.trainer.export.summarize import Summary

METHODS = ("cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
FOLDERS = click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group(
    cls=options.Actions,
    for_files="show",
    help="List, show and combine adapters. Every action takes --json, --offline and --debug.",
)
def command() -> None:
    pass


@options.command(
    "List adapters with base, kind, rank, size, data and score.\n\n"
    "DIR is a folder written by `autoft run` or by PEFT, or a folder of such folders.",
    examples=(
        "autoft adapters list runs",
        "autoft adapters list my-adapter peft-adapter",
        "autoft adapters list . --json",
    ),
)
@FOLDERS
def list_(folders: tuple[Path, ...], as_json: bool) -> None:
    from autoft.trainer.export.summarize import adapters_in, summary_of

    summaries, notes = [], []
    for folder in folders:
        adapters, left_out = adapters_in(folder)
        summaries += [summary_of(adapter) for adapter in adapters]
        notes += left_out
    for note in notes:
        click.echo(f"Note: {harmless(note, one_line=True)}", err=True)
    if as_json:
        options.print_json({"adapters": [summary.to_dict() for summary in summaries], "notes": notes})
    else:
        _show_list(summaries, render.console())


@options.command(
    "Show one adapter: base, settings, data, scores and what it was made from.\n\n"
    "DIR is a folder written by `autoft run`, `autoft adapters combine` or PEFT.",
    examples=(
        "autoft adapters show my-adapter",
        "autoft adapters show peft-adapter",
        "autoft adapters show my-adapter --json",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def show(folder: Path, as_json: bool) -> None:
    from autoft.trainer.evaluation.open_adapter import open_adapter
    from autoft.trainer.export.summarize import summary_of

    summary = summary_of(open_adapter(folder))
    if as_json:
        options.print_json(summary.to_dict())
    else:
        _show_one(summary, render.console())


@options.command(
    "Combine adapters of one base into a new adapter, by PEFT's methods.\n\n"
    "The base's weights are not loaded to combine. If they are on this machine, the result is loaded with them and "
    "scored beside its parts before it is kept.",
    examples=(
        "autoft adapters combine one two -o both",
        "autoft adapters combine one two --method svd --weights 1,0.5 -o both",
        "autoft adapters combine one two --method ties --density 0.5 --data test.jsonl -o both",
    ),
)
@FOLDERS
@click.option("--method", type=options.Choice(METHODS), help="How to combine them (default: cat, the exact sum).")
@click.option("--weights", metavar="W,W", help="One weight each (default: 1 each; for IA3 the mean).")
@click.option("--density", type=float, metavar="SHARE", help="Share of values to keep, where the method cuts some.")
@click.option("--data", metavar="PATH|ID", help="Score on these rows (default: rows their runs held out).")
@click.option("--base", metavar="MODEL", help="Use this base (default: the one the adapters name).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT", required=True, help="Write to this folder."
)
@click.option("--force", is_flag=True, help="Replace an adapter that was combined there.")
def combine(
    folders: tuple[Path, ...],
    method: str | None,
    weights: str | None,
    density: float | None,
    data: str | None,
    base: str | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    environment.quiet()
    from autoft.trainer.evaluation.open_adapter import open_adapter
    from autoft.trainer.export.combine import base_of, mix_of
    from autoft.trainer.export.combine import combine as combine_adapters

    adapters = [open_adapter(folder) for folder in folders]
    chosen = method or ("linear" if adapters[0].kind == "ia3" else "cat")
    mix = mix_of(adapters, chosen, _numbers(weights), density)
    console = render.console(stderr=True)

    def say(text: str) -> None:
        console.print(f"{text[0].upper()}{text[1:]} ...", markup=False)

    combined = combine_adapters(adapters, mix, base_of(adapters, base), output, data=data, force=force, say=say)
    if as_json:
        options.print_json(combined.to_dict())
    else:
        _show_combined(combined, render.console())


def _numbers(given: str | None) -> tuple[float, ...]:
    """The numbers of "1,0.5". Raises: OptionError."""
    try:
        return tuple(float(number) for number in given.split(",")) if given is not None else ()
    except ValueError:
        raise OptionError(f"--weights {given}: not numbers with commas", fix="--weights 1,0.5") from None


def _show_list(summaries: list[Summary], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Adapter", "Base", "Kind", "Size", "Data", "Held-out loss"):
        table.add_column(heading, overflow="fold")
    for summary in summaries:
        row = (summary.folder, summary.base or "?", _kind(summary), size(summary.bytes), _data(summary), _loss(summary))
        table.add_row(*(Text(harmless(cell, one_line=True)) for cell in row))
    console.print(table)


def _show_one(summary: Summary, console: Console) -> None:
    targets = summary.target_modules
    scaled = "" if summary.alpha is None else f", alpha {summary.alpha:g}, dropout {summary.dropout or 0:g}"
    pairs = [
        ("Base", summary.base or "not named"),
        ("Kind", _kind(summary) + scaled),
        *([("Layers", targets if isinstance(targets, str) else ", ".join(targets))] if targets else []),
        ("Weights", f"{count(summary.params)} ({summary.dtype}), {size(summary.bytes)}"),
        ("SHA-256", summary.sha256),
    ]
    if summary.data is not None:
        pairs += [("Data", _data(summary)), ("Loss", _loss(summary))]
    if summary.continued is not None:
        pairs.append(("Continued", f"from {summary.continued.name}, SHA-256 {summary.continued.sha256}"))
    for part in summary.parts:
        pairs.append((f"{summary.method}", f"{part.weight:g} x {part.name}, SHA-256 {part.sha256}"))
    console.print(Text(harmless(summary.folder, one_line=True), style="bold"))
    console.print(render.facts([(name, harmless(text, one_line=True)) for name, text in pairs]))


def _show_combined(combined: Combined, console: Console) -> None:
    console.print(f"Written to {combined.path}", markup=False)
    texts = list(dict.fromkeys(score.texts for score in combined.scores))
    if texts:
        table = Table(box=None, pad_edge=False)
        for heading in ("Perplexity", *texts):
            table.add_column(Text(harmless(heading, one_line=True)), justify="right" if heading in texts else "left")
        for name in dict.fromkeys(score.adapter for score in combined.scores):
            scores = [score.quality.perplexity for score in combined.scores if score.adapter == name]
            table.add_row(Text(harmless(name, one_line=True)), *(f"{perplexity:.3f}" for perplexity in scores))
        console.print(table)
    for note in combined.notes:
        console.print(f"Note: {harmless(note, one_line=True)}", markup=False)
    console.print(f"Next: autoft merge {combined.path} -o my-model", style="bold", markup=False, soft_wrap=True)


def _kind(summary: Summary) -> str:
    return summary.title if summary.rank is None else f"{summary.title}, rank {summary.rank}"


def _data(summary: Summary) -> str:
    if summary.parts:
        return " + ".join(part.name for part in summary.parts)
    return "" if summary.data is None else f"{summary.data}, {summary.rows:,} rows"


def _loss(summary: Summary) -> str:
    if summary.after is None or summary.after.loss is None:
        return ""
    before = "" if summary.before is None or summary.before.loss is None else f"{summary.before.loss:.3f} to "
    return f"{before}{summary.after.loss:.3f}"


command.add_command(list_, "list")
command.add_command(show, "show")
command.add_command(combine, "combine")
