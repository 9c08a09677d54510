"""A real terminal of a chosen width, and what was written to it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def terminal(width: int) -> Iterator[tuple[int, int]]:
    """Its two ends: ours to read from, theirs for the program. Both are closed in the end, if not before."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", str(width), "rows", "40"], stdin=theirs, check=True)
    try:
        yield ours, theirs
    finally:
        for end in (ours, theirs):
            with suppress(OSError):
                os.close(end)


def read_terminal(ours: int, *, until: str | None = None, longest_s: float = 60) -> str:
    """What is written, until its last writer is gone, or until a text is there (lines may break where they like)."""
    found = b""
    end = time.monotonic() + longest_s
    while time.monotonic() < end:
        ready, _, _ = select.select([ours], [], [], 1)
        try:
            part = os.read(ours, 65536) if ready else None
        except OSError:  # the other end is closed
            return found.decode()
        if part == b"":
            return found.decode()
        found += part or b""
        if until is not None and until in " ".join(" ".join(plain(found.decode(errors="replace"))).split()):
            return found.decode(errors="replace")
    raise AssertionError(f"the terminal showed no end in {longest_s:g} s: {found[-2000:].decode(errors='replace')}")


def plain(text: str) -> list[str]:
    """Its lines without what moves the cursor and colors."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
