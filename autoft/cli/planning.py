"""Options of every command that plans, and the Request they make."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoft.cli import options

if TYPE_CHECKING:
    from autoft.planner.plan_file import Plan
    from autoft.planner.request import Request
    from autoft.trainer.prepare import Prepared

METHODS = ("lora", "qlora")
PREFERENCES = ("balanced", "quality", "speed", "memory")

DEVICE = (
    click.option(
        "--gpu", metavar="NAME", help="Plan for this card of the catalogue, here or not; cpu plans without one."
    ),
    click.option("--vram", "vram_gib", type=float, metavar="GIB", help="Plan for so much device memory."),
)
SETTINGS = (
    click.option(
        "--seq-len",
        type=click.IntRange(min=1),
        metavar="N",
        help="Longest sequence in tokens; longer rows are left out.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Pin any field of the recipe or job. Repeatable."
    ),
)
RECIPE = (
    click.option("--method", type=options.Choice(METHODS), help="lora keeps the base in 16 bits, qlora holds it in 4."),
    *SETTINGS,
)
DATA = (
    click.option("--data", metavar="FILE", help="Training data: .jsonl, .json, .csv or .parquet."),
    click.option("--eval-data", metavar="FILE", help="Held-out rows; without it a part of --data is held out."),
    click.option(
        "--prefer",
        type=options.Choice(PREFERENCES),
        help="What to look at first. Default: balanced.",
    ),
    click.option("--preset", metavar="NAME", help="Defaults for a purpose, such as chatbot, code or edge."),
)


def add(*decorators: options.Decorator) -> options.Decorator:
    """Several options as one decorator, shown by --help in their order."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


def request(
    model: str,
    *,
    gpu: str | None,
    vram_gib: float | None,
    method: str | None,
    seq_len: int | None,
    settings: tuple[str, ...],
    data: str | None = None,
    eval_data: str | None = None,
    prefer: str | None = None,
    preset: str | None = None,
) -> Request:
    """The Request that the options make; the named ones are shorthand for --set and win over it."""
    from autoft.planner.request import Request

    pins = (*settings, *([f"method={method}"] if method else []))
    return Request(
        model=model,
        data=data,
        eval_data=eval_data,
        gpu=gpu,
        vram_gib=vram_gib,
        seq_len=seq_len,
        prefer=prefer,  # type: ignore[arg-type]
        preset=preset,
        settings=pins,
    )


def plan(wanted: Request, disk_path: Path | None = None) -> tuple[Plan, Prepared | None]:
    """Probe, then plan."""
    from autoft.trainer import environment

    environment.prepare()
    with rare_collections():
        from autoft.planner.plan import make_plan
        from autoft.profiles.detect import detect

        return make_plan(wanted, detect(disk_path))


@contextmanager
def rare_collections() -> Iterator[None]:
    """Imports and rehearsals make objects by the million and hardly a cycle: the search for cycles took a fifth."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
