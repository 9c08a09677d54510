"""What `plan` and `run` say at their start of libraries that are not in their tested versions."""

from __future__ import annotations

from rich.console import Console

TIMEOUT_S = 120.0


def tell_of_changes(console: Console) -> None:
    """Print a line for each library whose internals, on which autoft relies, are not as tested.

    Nothing is done where the installed versions are the tested ones. Otherwise a process of its own imports the
    libraries, once for each set of versions: the answer is kept in AUTOFT_HOME.
    """
    from autoft.trainer.compat.tested import untested

    versions = untested()
    if not versions:
        return
    from autoft.trainer.doctor.internals import one_line_of, remedy

    for library, lines in _differences(versions, console).items():
        if lines:
            line = one_line_of(library, versions[library], lines)
            console.print(f"Note: {line}. Figures may be wrong. To fix: {remedy([library])}", markup=False)


def _differences(versions: dict[str, str], console: Console) -> dict[str, list[str]]:
    from autoft import __version__
    from autoft.planner.plan.disk_cache import Shelf, digest
    from autoft.trainer.compat import hooks
    from autoft.trainer.doctor.workers import Unanswered, Workers

    shelf = Shelf("internals")
    key = digest([__version__, versions, [repr(hook) for hook in hooks()]])
    kept: dict[str, list[str]] | None = shelf.read(key)
    if kept is not None:
        return kept
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    console.print(f"Checking internals of {named}, once", markup=False)
    worker = Workers()
    try:
        answer = worker.ask("autoft.trainer.doctor.internals:examine_internals", *versions, timeout_s=TIMEOUT_S)
    except Unanswered as reason:
        return {name: [f"its internals could not be checked: {reason}"] for name in versions}
    finally:
        worker.close()
    differences: dict[str, list[str]] = answer["differences"]
    shelf.keep(key, differences)
    return differences
