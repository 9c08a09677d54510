"""`autoft estimate`: memory and time of one exact recipe."""

from __future__ import annotations

from typing import Any

import click

from autoft import render
from autoft.cli import options, planning


@options.command(
    "Memory and time of one exact recipe for MODEL.\n\n"
    "What no option sets takes the trainer's own default for the device. "
    "Exits with 3 when it does not fit."
)
@click.argument("model")
@planning.add(*planning.DEVICE, *planning.RECIPE)
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="Rank of the adapter.")
@click.option("--micro-batch", type=click.IntRange(min=1), metavar="N", help="Sequences in one forward and backward.")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Recompute activations in the backward.")
def command(
    model: str,
    settings: tuple[str, ...],
    rank: int | None,
    micro_batch: int | None,
    checkpointing: bool | None,
    as_json: bool,
    **words: Any,
) -> int:
    from autoft.trainer import environment

    environment.prepare()
    from autoft.planner.plan import make_estimate
    from autoft.profiles.detect import detect

    named = {"rank": rank, "micro_batch": micro_batch, "gradient_checkpointing": checkpointing}
    pins = tuple(f"{key}={str(value).lower()}" for key, value in named.items() if value is not None)
    wanted = planning.request(model, settings=(*settings, *pins), **words)
    recipe, estimate, target = make_estimate(wanted, detect())
    if as_json:
        options.print_json({"model": model, "target": target.name, "recipe": recipe.to_dict(), **estimate.to_dict()})
    else:
        from autoft.cli.show import show_estimate

        show_estimate(recipe, estimate, target.name, render.console())
    return 3 if estimate.fits == "no" else 0
