"""The terminal: how wide it is, and whether it takes colors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from autoft.errors import harmless

NARROWEST = 40
WIDTH_WITHOUT_TERMINAL = 100


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr: plain without a terminal or with NO_COLOR, never narrower than 40 columns.

    What goes to stderr is not the answer: nothing fails because it cannot be written.
    """
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() else WIDTH_WITHOUT_TERMINAL
    if stream.isatty():
        width = os.get_terminal_size(stream.fileno()).columns
    file = unbreakable(stream) if stderr else stream
    return Harmless(file=file, width=max(NARROWEST, width), highlight=False)


class Harmless(Console):
    """A console that shows text and takes no orders from it: names, rows and answers come from anywhere."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


class Unbreakable:
    """A text stream whose terminal or reader may go away: what is written then is lost, and nothing fails for it.

    broken: whether it has gone. rich by itself ends the process when a pipe breaks.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.broken = False

    def write(self, text: str) -> int:
        self._tried(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._tried(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _tried(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN):  # these pass, a lost reader does not
                self._to_nowhere()
        except ValueError:  # closed
            self.broken = True

    def _to_nowhere(self) -> None:
        """Also for what is written past us, and for Python's last flush, which else makes the exit code 120."""
        self.broken = True
        with suppress(OSError, ValueError):
            ours = self.stream.fileno()
            others = [fd for fd in (1, 2) if fd != ours and _same(fd, ours)]
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in (ours, *others):
                os.dup2(nowhere, fd)
            os.close(nowhere)


def unbreakable(stream: IO[str]) -> IO[str]:
    """The stream, that no longer fails for want of a reader."""
    return stream if isinstance(stream, Unbreakable) else cast(IO[str], Unbreakable(stream))


def _same(fd: int, other: int) -> bool:
    with suppress(OSError):
        return os.path.sameopenfile(fd, other)
    return False


def facts(rows: list[tuple[str, str]]) -> Table:
    """Name and value side by side; a long value goes on below itself, whatever the width."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=9, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(f"  {name}"), Text(value))
    return table
