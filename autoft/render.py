"""The terminal: how wide it is, and whether it takes colors."""

from __future__ import annotations

import os
import sys

from rich.console import Console

NARROWEST = 40
WIDTH_WITHOUT_TERMINAL = 100


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr: plain without a terminal or with NO_COLOR, never narrower than 40 columns."""
    stream = sys.stderr if stderr else sys.stdout
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdigit() else WIDTH_WITHOUT_TERMINAL
    if stream.isatty():
        width = os.get_terminal_size(stream.fileno()).columns
    return Console(file=stream, width=max(NARROWEST, width), highlight=False)
