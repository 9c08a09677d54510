"""The terminal: how wide it is, and whether it takes colors."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

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


def facts(rows: list[tuple[str, str]]) -> Table:
    """Name and value side by side; a long value goes on below itself, whatever the width."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=9, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(f"  {name}"), Text(value))
    return table
