"""`autoft export`: a finished run in the form that another tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from autoft import render
from autoft.cli import options
from autoft.units import size

if TYPE_CHECKING:
    from autoft.trainer.export.exporter import Export

KINDS = ("safetensors", "nf4", "int8", "gguf", "gguf-lora", "ollama", "vllm", "mlx")

BASE = click.option("--base", metavar="MODEL", help="Use this base (default: the one the adapter names).")
FORCE = click.option("--force", is_flag=True, help="Replace an export; keep one past its bound.")


@options.command(
    "Export the model in DIR for another tool.\n\n"
    "DIR is a folder written by `autoft run`, or by PEFT. The export is loaded again and judged on held-out rows.",
    examples=(
        "autoft export my-adapter --to gguf --quant q4_k_m -o my-model.gguf",
        "autoft export my-adapter --to ollama -o my-model",
        "autoft export my-adapter --to vllm -o my-lora",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--to", "kind", type=options.Choice(KINDS), required=True, help=f"The form: {', '.join(KINDS)}.")
@click.option("--quant", metavar="TYPE", help="Type of the weights in a GGUF file (default: f16).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="PATH", required=True, help="Write to this path."
)
@click.option("--name", metavar="NAME", help="Name the model (default: that of PATH).")
@BASE
@FORCE
@options.ACCEPT_CHANGES
def command(
    folder: Path,
    kind: str,
    quant: str | None,
    output: Path,
    name: str | None,
    base: str | None,
    force: bool,
    accept_changes: bool,
    as_json: bool,
) -> None:
    run_export(
        folder,
        kind=kind,
        quant=quant,
        output=output,
        name=name,
        base=base,
        force=force,
        accept_changes=accept_changes,
        as_json=as_json,
    )


def run_export(
    folder: Path,
    *,
    kind: str,
    quant: str | None,
    output: Path,
    name: str | None,
    base: str | None,
    force: bool,
    accept_changes: bool,
    as_json: bool,
) -> None:
    """Export, with progress on stderr, and print a table or one JSON object. Raises: AutoftError."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.export.exporter import Order
    from autoft.trainer.export.exporting import export, exporter_named
    from autoft.trainer.export.source import open_source

    exporter, chosen = exporter_named(kind, quant)
    console = render.console(stderr=True)

    def say(text: str) -> None:
        console.print(f"{text[0].upper()}{text[1:]} ...", markup=False)

    order = Order(out=output, quant=chosen, name=name, force=force, say=say)
    say(f"opening {folder}")
    source = open_source(folder, base=base, accept_changes=accept_changes, say=say)
    written = export(exporter, source, order)
    if as_json:
        options.print_json(written.to_dict())
    else:
        show_export(written, render.console())


def show_export(written: Export, console: Console) -> None:
    """One table: what was written beside base and adapter; then notes and what to type next."""
    from rich.table import Table

    title = f"{written.kind} {written.quant}" if written.quant else written.kind
    table = Table(box=None, pad_edge=False)
    for heading in ("", "Size", "Mean log-prob", "Perplexity", "Apart"):
        table.add_column(heading, justify="left" if not heading else "right")
    was, now = written.reference, written.quality
    table.add_row("base + adapter", "", f"{was.mean_logprob:.4f}", f"{was.perplexity:.3f}", "")
    apart = f"{written.drift.mean_logprob:.4f}"
    table.add_row(title, size(written.bytes), f"{now.mean_logprob:.4f}", f"{now.perplexity:.3f}", apart)
    console.print(f"Written to {written.path}", markup=False)
    console.print(table)
    limit = "mean distance of log-probs" if written.bound.of == "distance" else "fall of the mean log-prob"
    console.print(
        f"{written.scored_tokens} tokens of {written.texts}, in {written.computed_in}. "
        f"Bound: {limit} at most {written.bound.nats:g} nats.",
        markup=False,
    )
    for note in written.notes:
        console.print(f"Note: {note}", markup=False)
    for line in written.commands:
        console.print(f"Next: {line}", style="bold", markup=False, soft_wrap=True)
