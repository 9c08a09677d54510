"""How figures look to people. Only here do bytes become GiB."""

from __future__ import annotations

import os
import sys

from rich.console import Console

MIB = 2**20
GIB = 2**30


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr: plain without a terminal or with NO_COLOR, never narrower than 40 columns."""
    stream = sys.stderr if stderr else sys.stdout
    width = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else int(os.environ.get("COLUMNS", "100"))
    return Console(file=stream, width=max(40, width), highlight=False, soft_wrap=False)


def size(num_bytes: int) -> str:
    """12.3 GiB, or 512 MiB below one GiB."""
    return f"{num_bytes / GIB:.1f} GiB" if abs(num_bytes) >= GIB else f"{num_bytes / MIB:.0f} MiB"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """135M, 7.2B, 4,096."""
    for limit, unit in ((1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:,.0f}"
