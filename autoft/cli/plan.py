"""`autoft plan`: the best fine-tune of a model that this machine can run, and why."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoft import render
from autoft.cli import internals, options, planning, what_if
from autoft.errors import OptionError, OutputError

if TYPE_CHECKING:
    from autoft.planner.plan.record import Plan
    from autoft.planner.request import Request


@options.command(
    "Find the best settings to fine-tune MODEL on this machine, and explain them.\n\n"
    "MODEL is a hub id, a local folder, a .gguf file, a name from `autoft profiles models`, or starter.",
    examples=(
        "autoft plan qwen2.5-7b-instruct --data mine.jsonl",
        "autoft plan qwen2.5-7b-instruct --gpu rtx-3060 --seq-len 2048",
        "autoft plan llama-3.1-8b-instruct --gpu rtx-4090 --explain",
    ),
)
@click.argument("model", required=False)
@planning.add(
    *planning.START,
    *planning.DATA,
    *planning.DEVICE,
    *planning.HOSTS,
    *planning.RECIPE,
    *planning.LIMITS,
    *what_if.OPTIONS,
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the plan to FILE (TOML).")
@options.FORCE
@click.option("--explain", is_flag=True, help="Show every reason, assumption, alternative and figure.")
@click.option("--no-cache", is_flag=True, help="Ignore the plan cache.")
@click.option("--diff", type=click.Path(path_type=Path), nargs=2, metavar="A B", help="Compare two plan files.")
def command(
    model: str | None,
    output: Path | None,
    force: bool,
    explain: bool,
    diff: tuple[Path, Path] | None,
    no_cache: bool,
    as_json: bool,
    **words: Any,
) -> int | None:
    if diff is not None:
        if model is not None or output is not None or explain or any(words.values()):
            raise OptionError("--diff compares two plan files and plans nothing", fix="autoft plan --diff A B")
        from autoft.cli.diff import show_diff

        show_diff(*diff, as_json=as_json)
        return None
    model = _model(model, words)
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise OutputError(f"{output}: not a file that can be written", fix="-o a file in a folder that exists")
    if output is not None:
        options.check_free(output, "-o", force=force)
    if words["data"] is None and model == "starter":
        words["data"] = "starter"
    internals.tell_of_changes(render.console(stderr=True))
    answered = what_if.answer(model, words, output=output, explain=explain, as_json=as_json)
    if answered is not None:
        return answered
    wanted = planning.request(model, **words)
    plan = planning.kept_plan(wanted, no_cache=no_cache)
    figures = _explained(plan, wanted) if explain else []
    if output is not None:
        from autoft.planner.plan.record import write_plan

        write_plan(plan, output)
    if as_json:
        options.print_json({**plan.to_dict(), "explanation": figures} if explain else plan.to_dict())
        return None
    from autoft.cli.show import show_explanation
    from autoft.cli.show_correction import show_sources
    from autoft.cli.show_plan import show_details, show_plan

    console = render.console()
    show_plan(plan, console)
    if explain:
        show_details(plan, console)
        show_explanation(figures, console)
        show_sources(plan, console)
    console.print(f"Next: {_next(model, output, words)}", style="bold", markup=False)
    if not explain:
        console.print("More: --explain (every reason, assumption and alternative)", style="dim", markup=False)
    return None


def _model(model: str | None, words: dict[str, Any]) -> str:
    """MODEL, or what --base-run or --from-adapter names. Raises: OptionError without any of these, ModelError."""
    named = planning.named_model(model, words, fetches=False)
    if named is None:
        raise OptionError("Missing argument 'MODEL'", fix="autoft plan --help shows how it is used")
    return named


def _next(model: str, output: Path | None, words: dict[str, Any]) -> str:
    """The command that trains what was planned: the file, or the same words again."""
    words_to_type = [str(output)] if output is not None else [model]
    for option in click.get_current_context().command.params:
        value = words.get(option.name or "") if output is None else None
        for word in value if isinstance(value, tuple) else [value]:
            if word is not None and (model, word) != ("starter", "starter"):
                words_to_type += [option.opts[0], str(word)]
    return shlex.join(["autoft", "run", *words_to_type]) + ("" if words["data"] else " --data FILE")


def _explained(plan: Plan, wanted: Request) -> list[dict[str, Any]]:
    from autoft.planner.explain.explain_plan import explain_plan
    from autoft.profiles.detect import detect

    hardware = detect()
    with planning.rehearsing():
        return [figure.to_dict() for figure in explain_plan(plan, wanted, hardware)]
