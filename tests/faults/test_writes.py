"""A part of `make faults`: a run is killed, or refused by the disk, at some of the changes of files that it makes.

In a process of its own, since its libc has tests/faults/shim.c in front and its children are forked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.scene import compile_shim

COMMAND = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_no_change_of_a_file_is_one_that_a_run_does_not_survive(tmp_path: Path) -> None:
    """Of a checkpoint's save each, of a whole run one of 120; and a terminal that is closed."""
    if compile_shim(tmp_path) is None:
        pytest.skip("no C compiler, or no Linux")
    told = tmp_path / "rows.json"
    done = subprocess.run(
        [
            sys.executable,
            COMMAND,
            "--only",
            "checkpoint,kills,power,full disks,terminal",
            "--every",
            "120",
            "--json",
            told,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads(told.read_text(encoding="utf-8"))
    assert {row["fault"].split(",")[0] for row in rows} >= {"kill -9", "disk full once", "the terminal is closed"}
    assert all(row["holds"] and row["cases"] for row in rows)
