"""`autoft estimate`: memory and time of one exact recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autoft import render
from autoft.cli import options, planning
from autoft.errors import OptionError


@options.command(
    "Memory and time of one exact recipe for MODEL.\n\n"
    "What no option sets takes the trainer's own default for the device. "
    "Exits with 3 when it does not fit."
)
@click.argument("model", required=False)
@click.option("--cases", metavar="FILE", help="Many recipes: one JSON object a line, each with its model.")
@planning.add(*planning.DEVICE, *planning.RECIPE)
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="Rank of the adapter.")
@click.option("--micro-batch", type=click.IntRange(min=1), metavar="N", help="Sequences in one forward and backward.")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Recompute activations in the backward.")
def command(
    model: str | None,
    cases: str | None,
    settings: tuple[str, ...],
    rank: int | None,
    micro_batch: int | None,
    checkpointing: bool | None,
    as_json: bool,
    **words: Any,
) -> int:
    from autoft.trainer import environment

    environment.prepare()
    if cases is not None:
        return _cases(
            model, cases, as_json, named_settings=(rank, micro_batch, checkpointing), settings=settings, **words
        )
    if model is None:
        raise OptionError("no model given", fix="autoft estimate MODEL, or --cases FILE")
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


def _cases(
    model: str | None,
    path: str,
    as_json: bool,
    *,
    named_settings: tuple[Any, ...],
    settings: tuple[str, ...],
    **words: Any,
) -> int:
    from autoft.planner.cases import estimates, read_cases
    from autoft.profiles.detect import detect

    taken = (model, *named_settings, *settings, words["method"], words["seq_len"])
    if any(value is not None for value in taken):
        raise OptionError("--cases: each case has its own model and settings", fix="leave the other options out")
    found = estimates(read_cases(Path(path)), detect(), words["gpu"], words["vram_gib"])
    if as_json:
        options.print_json(
            [{"model": case.model, "recipe": recipe.to_dict(), **e.to_dict()} for case, recipe, e in found]
        )
        return 0
    from autoft.cli.show import show_cases

    show_cases(found, render.console())
    return 0
