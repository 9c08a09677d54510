"""`autoft estimate`: memory and time of one exact recipe."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoft import render
from autoft.cli import options, planning
from autoft.errors import OptionError, OutputError

if TYPE_CHECKING:
    from autoft.planner.plan.cached_estimates import Kept
    from autoft.planner.request import Request
    from autoft.profiles.hardware import Hardware

TRACES = (".html", ".svg")


@options.command(
    "Estimate memory and time of one exact recipe for MODEL.\n\n"
    "Settings that are not given take the trainer's defaults for the device. Exits with 3 if the recipe does not fit.",
    examples=(
        "autoft estimate qwen2.5-7b-instruct --method qlora --seq-len 2048 --gpu rtx-3060",
        "autoft estimate llama-3.1-8b-instruct --micro-batch 4 --explain --gpu rtx-4090",
        "autoft estimate qwen2.5-7b-instruct --serve --adapters 4 --seq-len 8192 --gpu t4",
    ),
)
@click.argument("model", required=False)
@click.option("--cases", metavar="FILE", help="Estimate many recipes: one JSON object per line.")
@planning.add(*planning.DEVICE, *planning.RECIPE)
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="Rank of the adapter.")
@click.option("--micro-batch", type=click.IntRange(min=1), metavar="N", help="Sequences per forward and backward pass.")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Recompute activations in the backward pass.")
@click.option("--serve", is_flag=True, help="Estimate memory to answer instead: weights, adapters, KV cache.")
@click.option(
    "--adapters", type=click.IntRange(min=0), metavar="N", help="Adapters on the base, with --serve (default: 1)."
)
@click.option("--explain", is_flag=True, help="Show where each figure comes from.")
@click.option("--trace", metavar="FILE", help="Save a memory timeline (.html or .svg).")
@options.FORCE
@click.option("--no-cache", is_flag=True, help="Ignore cached estimates.")
def command(
    model: str | None,
    cases: str | None,
    settings: tuple[str, ...],
    rank: int | None,
    micro_batch: int | None,
    checkpointing: bool | None,
    serve: bool,
    adapters: int | None,
    explain: bool,
    trace: str | None,
    force: bool,
    no_cache: bool,
    as_json: bool,
    **words: Any,
) -> int:
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.profiles.detect import detect

    if cases is not None:
        named_settings = (rank, micro_batch, checkpointing, serve or None, adapters, explain or None, trace)
        hardware = detect()
        with planning.rehearsing():
            return _cases(model, cases, hardware, as_json, named_settings=named_settings, settings=settings, **words)
    if model is None:
        raise OptionError("no model given", fix="autoft estimate MODEL, or --cases FILE")
    named = {"rank": rank, "micro_batch": micro_batch, "gradient_checkpointing": checkpointing}
    wanted = planning.request(model, settings=planning.pinned(settings, named), **words)
    hardware = detect()
    if serve:
        if explain or trace is not None:
            raise OptionError("--explain and --trace are of training, not of --serve", fix="leave them out")
        with planning.rehearsing():
            return _serving(wanted, hardware, adapters, as_json=as_json)
    if adapters is not None:
        raise OptionError(f"--adapters {adapters} goes with --serve", fix="add --serve, or leave it out")
    with planning.rehearsing():
        path = None if trace is None else _trace_file(trace, force=force)
        known, target = _answer(wanted, hardware, explained=explain, trace=path, no_cache=no_cache)
    estimate = known.estimate
    if as_json:
        answer = {"model": model, "target": target, "recipe": known.recipe.to_dict(), **estimate.to_dict()}
        options.print_json({**answer, "explanation": known.explanation} if explain else answer)
    else:
        from autoft.cli.show import show_estimate, show_explanation

        console = render.console()
        show_estimate(known.recipe, estimate, target, console)
        if explain:
            show_explanation(known.explanation or (), console)
    return 3 if estimate.fits == "no" else 0


def _answer(
    wanted: Request, hardware: Hardware, *, explained: bool, trace: Path | None, no_cache: bool
) -> tuple[Kept, str]:
    """The answer and the target's name: from the answers kept, else rehearsed now and kept. A trace is always anew."""
    from autoft.planner.plan import cached_estimates

    question = None if no_cache else cached_estimates.ask(wanted, hardware)
    known = cached_estimates.recall(question, explained=explained) if question and trace is None else None
    if question and known:
        return known, question.target.name
    from autoft.planner.plan.exact import make_estimate

    answer = make_estimate(wanted, hardware)
    known = cached_estimates.Kept(answer.recipe, answer.estimate, None, "")
    if explained or trace is not None:
        from autoft.planner.memory.recording import record

        recording = record(answer.rehearsal, answer.estimator.allocator())
        if explained:
            from autoft.planner.explain.figures import explain

            known = replace(known, explanation=tuple(figure.to_dict() for figure in explain(recording, answer)))
        if trace is not None:
            from autoft.planner.explain.timeline import timeline, write

            write(trace, timeline(recording, answer, wanted.model))
    if question:
        cached_estimates.keep(question, known)
    return known, answer.target.name


def _serving(wanted: Request, hardware: Hardware, adapters: int | None, *, as_json: bool) -> int:
    from autoft.planner.plan.exact import make_serving

    recipe, estimate, target = make_serving(wanted, hardware, adapters)
    if as_json:
        options.print_json(
            {"model": wanted.model, "target": target.name, "recipe": recipe.to_dict(), **estimate.to_dict()}
        )
    else:
        from autoft.cli.show import show_serving

        show_serving(recipe, estimate, target.name, render.console())
    return 3 if estimate.fits == "no" else 0


def _trace_file(name: str, *, force: bool) -> Path:
    """Raises: OptionError for another suffix, OutputError where no file can be written, or is there without force."""
    path = Path(name)
    if path.suffix.lower() not in TRACES:
        raise OptionError(f"--trace {path}: neither .html nor .svg", fix=f"--trace {path.stem or 'trace'}.html")
    if path.is_dir():
        raise OutputError(f"--trace {path}: a folder", fix=f"--trace {path / 'trace.html'}")
    if not path.parent.is_dir():
        raise OutputError(f"--trace {path}: no folder {path.parent}", fix="make the folder, or give another path")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"--trace {path}: {path.parent} cannot be written to", fix="give another path")
    options.check_free(path, "--trace", force=force)
    return path


def _cases(
    model: str | None,
    path: str,
    hardware: Hardware,
    as_json: bool,
    *,
    named_settings: tuple[Any, ...],
    settings: tuple[str, ...],
    **words: Any,
) -> int:
    from autoft.planner.plan.cases import estimates, read_cases

    taken = (model, *named_settings, *settings, words["method"], words["seq_len"])
    if any(value is not None for value in taken):
        raise OptionError("--cases: each case has its own model and settings", fix="leave the other options out")
    answers = estimates(read_cases(Path(path)), hardware, words["gpu"], words["vram_gib"])
    if as_json:
        options.print_json(
            [{"model": case.model, "recipe": recipe.to_dict(), **e.to_dict()} for case, recipe, e in answers]
        )
        return 0
    from autoft.cli.show import show_cases

    show_cases(answers, render.console())
    return 0
