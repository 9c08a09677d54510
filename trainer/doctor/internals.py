"""Are the internals that autoft relies on as in the tested versions? Asked in a worker: it imports every library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoft.hooks import check
from autoft.trainer.compat import TABLES, hooks
from autoft.trainer.compat.tested import TESTED
from autoft.trainer.doctor.finding import Finding
from autoft.trainer.runtime import environment

LONGEST = 160  # characters of what has changed


def differences(*libraries: str) -> dict[str, list[str]]:
    """By library, all where none is named: what is not as tested, a line each. Imports the libraries."""
    environment.prepare()
    if libraries != ("torch",):
        environment.import_bitsandbytes()
    import torch as installed

    cuda = installed.version.cuda is not None
    return {name: check(TABLES[name].hooks, cuda=cuda) for name in libraries or TABLES}


def examine_internals(*libraries: str) -> dict[str, Any]:
    """checked: number of hooks, of all libraries where none is named. differences: lines by library."""
    by_library = differences(*libraries)
    import torch

    cuda = torch.version.cuda is not None
    checked = [hook for hook in hooks() if hook.library in by_library and (cuda or not hook.cuda_only)]
    return {"checked": len(checked), "differences": by_library}


def as_tested(examined: Mapping[str, Any], versions: Mapping[str, str | None]) -> Finding:
    """The finding of what `examine_internals` returned. versions: installed ones, by library."""
    checked, changed = examined["checked"], {name: lines for name, lines in examined["differences"].items() if lines}
    number = sum(len(lines) for lines in changed.values())
    seen = f"{checked - number} of {checked} as tested"
    if not changed:
        return Finding(name="internals", status="ok", found=seen)
    lines = [one_line_of(name, str(versions.get(name)), changed[name]) for name in changed]
    return Finding(name="internals", status="failed", found="; ".join([seen, *lines]), fix=remedy(list(changed)))


def one_line_of(library: str, version: str, lines: Sequence[str]) -> str:
    """What has changed in a library, in one line: the first, and how many more there are."""
    first = lines[0] if len(lines[0]) <= LONGEST else f"{lines[0][:LONGEST]}..."
    more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
    return f"{library} {version}: {first}{more}"


def remedy(libraries: Sequence[str]) -> str:
    """The command that installs the tested versions of these libraries."""
    return "install the tested version: pip install " + " ".join(f"{name}=={TESTED[name]}" for name in libraries)
