"""`autoft runs`: the runs of this machine: list, show, compare, tag and clean them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoft import render
from autoft.cli import options
from autoft.errors import AutoftError, OptionError, near
from autoft.units import size

if TYPE_CHECKING:
    from autoft.trainer.storage.runs import StoredRun

TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
SHORTEST_ID = 4


@click.group(
    cls=options.Actions,
    for_files="show",
    help="List, show, compare, tag and clean runs. Every action takes --json, --offline and --debug.\n\n"
    "RUN is a run's folder, its name, a tag, or the first letters of its id.",
)
def command() -> None:
    pass


@options.command(
    "List runs, newest first.\n\n"
    "Shows the runs that `autoft run` has started on this machine. With DIR, shows the runs in these folders and adds "
    "them to the list, such as runs that were moved or copied here.",
    examples=("autoft runs list", "autoft runs list runs /mnt/backup/runs", "autoft runs list --json"),
)
@click.argument("folders", nargs=-1, metavar="[DIR...]", type=click.Path(path_type=Path))
def list_(folders: tuple[Path, ...], as_json: bool) -> None:
    from autoft.cli.show_runs import show_list

    runs = _runs_of(folders) if folders else _known()
    if as_json:
        from autoft.trainer.storage import run_index

        options.print_json({"file": str(run_index.path()), "runs": [_brief(run) for run in runs]})
    else:
        show_list(runs, render.console())


@options.command(
    "Show one run: its settings, scores and files.",
    examples=("autoft runs show my-adapter", "autoft runs show best", "autoft runs show 3f2a91c0 --json"),
)
@click.argument("name", metavar="RUN")
def show(name: str, as_json: bool) -> None:
    from autoft.cli.show_runs import show_run

    run = _named(name, _known())
    if as_json:
        options.print_json(run.to_dict())
    else:
        show_run(run, render.console())


@options.command(
    "Compare runs: the settings that differ, then the scores on held-out rows.",
    examples=(
        "autoft runs compare runs/starter runs/starter-2",
        "autoft runs compare best my-adapter",
        "autoft runs compare a b c --json",
    ),
)
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
def compare(names: tuple[str, ...], as_json: bool) -> None:
    from autoft.cli.show_runs import differing_settings, scores_of, show_comparison

    known = _known()
    runs = [_named(name, known) for name in names]
    if len({(run.id, run.path) for run in runs}) < len(runs) or len(runs) < 2:
        raise OptionError(f"compare {' '.join(names)}: needs two different runs", fix="autoft runs list shows them")
    for run in runs:
        if run.job is None:
            raise OptionError(f"{run.folder}: {run.state}, its settings are not known", fix="compare other runs")
    if as_json:
        settings, scores = differing_settings(runs), scores_of(runs)
        options.print_json({"runs": [_brief(run) for run in runs], "settings": settings, "scores": scores})
    else:
        show_comparison(runs, render.console())


@options.command(
    "Tag a run, to name it in other actions. A tag may be given to several runs.",
    examples=(
        "autoft runs tag my-adapter best",
        "autoft runs tag runs/starter-2 batch-1",
        "autoft runs tag my-adapter best --remove",
    ),
)
@click.argument("name", metavar="RUN")
@click.argument("tag_name", metavar="NAME")
@click.option("--remove", is_flag=True, help="Remove this tag from the run.")
def tag(name: str, tag_name: str, remove: bool, as_json: bool) -> None:
    if not TAG.fullmatch(tag_name):
        raise OptionError(
            f"tag {tag_name}: not a name", fix="letters, digits, dots, dashes and underscores, 64 at most"
        )
    from autoft.trainer.storage import run_index

    run = _named(name, _known())
    if remove and tag_name not in run.tags:
        raise OptionError(f"{run.folder}: has no tag {tag_name}.{near(tag_name, run.tags)}", fix="autoft runs list")
    others = tuple(each for each in run.tags if each != tag_name)
    tags = others if remove else (*others, tag_name)
    _index([run])
    run_index.set_tags(run.id, tags)
    if as_json:
        options.print_json({"id": run.id, "folder": run.folder, "tags": list(tags)})
    else:
        render.console().print(f"{run.folder}: {', '.join(tags) or 'no tags'}", markup=False)


@options.command(
    "Remove failed runs and the checkpoints that finished runs have left.\n\n"
    "Lists what would go; --yes removes it. Running and finished runs stay, and so do files that autoft did not write. "
    "Runs whose folder is gone are removed from the list.",
    examples=("autoft runs clean", "autoft runs clean --yes", "autoft runs clean --interrupted --json"),
)
@click.argument("names", nargs=-1, metavar="[RUN...]")
@click.option("--interrupted", is_flag=True, help="Also remove runs that could be resumed.")
@click.option("--yes", is_flag=True, help="Remove what is listed.")
def clean(names: tuple[str, ...], interrupted: bool, yes: bool, as_json: bool) -> None:
    from autoft.trainer.storage import run_index
    from autoft.trainer.storage.runs import removals, remove

    known = _known()
    runs = [_named(name, known) for name in names] if names else known
    chosen = removals(runs, interrupted=interrupted)
    gone = [run for run in runs if run.state == "missing"]
    left: list[str] = []
    refused: list[str] = []
    for removal in chosen if yes else ():
        try:
            left += [f"{removal.folder}: {name}" for name in remove(removal)]
        except AutoftError as error:
            refused.append(error.what)
    if yes:
        run_index.forget({(run.id, run.folder) for run in gone})
    if as_json:
        options.print_json(
            {
                "removed": yes,
                "bytes": sum(removal.bytes for removal in chosen),
                "removals": [removal.to_dict() for removal in chosen],
                "missing": [run.folder for run in gone],
                "left": left,
                "refused": refused,
            }
        )
        return
    console = render.console()
    for removal in chosen:
        console.print(f"{size(removal.bytes):>9}  {removal.what:<11}  {removal.folder}", markup=False, soft_wrap=True)
    for run in gone:
        console.print(f"{'':>9}  not there    {run.folder}", markup=False, soft_wrap=True)
    for name in left:
        console.print(f"Stays, autoft did not write it: {name}", markup=False, soft_wrap=True)
    for what in refused:
        console.print(f"Not removed: {what}", markup=False, soft_wrap=True)
    total = size(sum(removal.bytes for removal in chosen))
    if not chosen and not gone:
        console.print("Nothing to remove")
    elif yes:
        console.print(f"Removed: {total}")
    else:
        console.print(f"Would free {total}. To remove: --yes")


def _known() -> list[StoredRun]:
    from autoft.trainer.storage import run_index
    from autoft.trainer.storage.runs import known_runs

    return known_runs(run_index.entries())


def _runs_of(folders: Sequence[Path]) -> list[StoredRun]:
    """The runs in these folders, newest first, which the index has from now on if it can be written.

    Raises: OptionError where there is none in one.
    """
    from autoft.trainer.storage.runs import newest_first, runs_in

    runs = []
    for folder in folders:
        here = runs_in(folder)
        if not here:
            reason = "no run in it" if folder.is_dir() else "no such folder"
            raise OptionError(f"{folder}: {reason}", fix="a run's folder, or a folder of runs")
        runs += here
    try:
        _index(runs)
    except OSError as error:
        render.console(stderr=True).print(
            f"Note: not added to the list: {error.filename}: {error.strerror}", markup=False
        )
    known = {(run.id, run.path): run for run in _known()}
    return newest_first(known.get((run.id, run.path), run) for run in runs)


def _index(runs: Sequence[StoredRun]) -> None:
    from autoft.trainer.storage import run_index
    from autoft.trainer.storage.runs import entry_of

    run_index.add([entry_of(run) for run in runs])


def _named(name: str, known: Sequence[StoredRun]) -> StoredRun:
    """The run that a person means: by its folder, tag, folder's name or id.

    Raises: OptionError where it is none, or more than one.
    """
    from autoft.trainer.storage.runs import runs_in

    path = Path(name).absolute()
    here = [run for run in runs_in(path) if path in (Path(run.folder), Path(run.path))]
    by_place = {(run.id, run.path): run for run in known}
    matches = [by_place.get((run.id, run.path), run) for run in here]
    if len(matches) > 1:  # a finished run, and the unfinished one that is to replace it
        matches = [run for run in matches if Path(run.path) == path]
    for is_meant in (_has_tag, _has_name, _has_id):
        matches = matches or [run for run in known if is_meant(run, name)]
    if not matches:
        names = [word for run in known for word in (*run.tags, Path(run.folder).name)]
        raise OptionError(f"{name}: no such run.{near(name, names)}", fix="autoft runs list shows them")
    if len(matches) > 1:
        places = ", ".join(run.path for run in matches)
        raise OptionError(f"{name}: {len(matches)} runs: {places}", fix="name one by its folder")
    return matches[0]


def _has_tag(run: StoredRun, name: str) -> bool:
    return name in run.tags


def _has_name(run: StoredRun, name: str) -> bool:
    return Path(run.folder).name == name


def _has_id(run: StoredRun, name: str) -> bool:
    return len(name) >= SHORTEST_ID and run.id.startswith(name)


def _brief(run: StoredRun) -> dict[str, Any]:
    """Without the job, which `show` has."""
    return {name: value for name, value in run.to_dict().items() if name != "job"}


command.add_command(list_, "list")
command.add_command(show, "show")
command.add_command(compare, "compare")
command.add_command(tag, "tag")
command.add_command(clean, "clean")
