"""What counts as memory of a run on the CPU: what only the process holds, and no pages of files."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from autoft.trainer.runtime.peak_memory import resident_bytes

MIB = 2**20
SIZE = 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell pages of files apart")
def test_a_file_that_is_mapped_and_read_is_no_memory_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * SIZE)
    with (tmp_path / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = resident_bytes()
        assert sum(mapped[at] for at in range(0, SIZE, mmap.PAGESIZE)) > 0  # each page is read
        assert abs(resident_bytes() - before) < 8 * MIB


@pytest.mark.skipif(sys.platform == "win32", reason="pages of its own are asked for in another way")
def test_what_is_allocated_is() -> None:
    """Pages of its own: what malloc gives may have been resident before."""
    before = resident_bytes()
    held = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, SIZE, mmap.PAGESIZE):
        held[at] = 1
    assert resident_bytes() - before > SIZE - 8 * MIB
