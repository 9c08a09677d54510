"""What does a run lose when it is killed, its disk is full, its memory ends, its files are damaged?

    python benchmarks/faults.py [--every N] [--only NAME,NAME] [--json FILE]

Causes each fault for real on a tiny model, in a process of its own, resumes the run, compares its weights with those of
one that nothing has disturbed, and prints the table; without --only also into benchmarks/results and docs/faults.md.
Exit code 1 when a row does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.scene import Scene, compile_shim  # noqa: E402 - from where the tests have it
from tests.faults.table import Row, Skipped  # noqa: E402

HEAD = """# What a run survives

Written by `make faults`, which causes each of these for real, on a tiny model, in a process of its own. "Same weights":
the run was resumed, or finished by itself, and its adapter has the SHA-256 of one that nothing has disturbed.
tests/faults has a part of them; tests/faults/shim.c stands in front of libc and counts the changes of files.

Not caused here: power that is lost (what a disk had not written by then; the order in which files are made durable is
checked instead), a GPU that is lost, network filesystems. A rename that a library asks of the kernel past libc, as
safetensors does with the file that it has written aside, is not counted: runs die before and after it, not at it.

"""


def main() -> None:
    options = argparse.ArgumentParser(description="Cause every fault, and see what it costs.")
    options.add_argument("--every", type=int, default=1, help="try one of so many changes of files, not each")
    options.add_argument("--only", default="", help="names of groups of rows, with commas")
    options.add_argument("--json", type=Path, help="write the rows to this file too")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "LD_PRELOAD" not in os.environ:
            shim = compile_shim(Path(folder))
            if shim is not None:
                # the libc of this process, too, has to have it in front
                os.environ["LD_PRELOAD"] = str(shim)
                done = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, *sys.argv])
                sys.exit(done)
        rows = _rows(Scene(Path(folder) / "scene"), chosen.only, every=chosen.every)
    print(_table(rows))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([row.to_dict() for row in rows if isinstance(row, Row)]), encoding="utf-8")
    if not chosen.only:
        _write(rows, chosen.every)
    broken = [row for row in rows if isinstance(row, Row) and not row.holds]
    for row in broken:
        print(f"\n{row.fault}, {row.when}:", *row.wrong, sep="\n  ")
    sys.exit(1 if broken else 0)


def _rows(scene: Scene, only: str, *, every: int) -> list[Row | Skipped]:
    from tests.faults.rows import ROWS

    found: list[Row | Skipped] = []
    for name, rows in ROWS.items():
        if only and name not in only.split(","):
            continue
        began = time.monotonic()
        for row in rows(scene, every):
            found.append(row)
            print(_line(row), file=sys.stderr, flush=True)
        print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def _line(row: Row | Skipped) -> str:
    if isinstance(row, Skipped):
        return f"{row.fault}: not caused, {row.reason}"
    return f"{row.fault}, {row.when}: {'holds' if row.holds else 'does NOT hold'}"


def _table(rows: list[Row | Skipped]) -> str:
    lines = ["| Fault | When | Cases | What happened | Lost | Same weights | Holds |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if isinstance(row, Skipped):
            lines.append(f"| {row.fault} | | 0 | not caused: {row.reason} | | | |")
            continue
        same = {True: "yes", False: "no", None: "-"}[row.same]
        lines.append(
            f"| {row.fault} | {row.when} | {row.cases} | {row.happened} | {row.lost} | {same} |"
            f" {'yes' if row.holds else 'NO'} |"
        )
    return "\n".join(lines)


def _write(rows: list[Row | Skipped], every: int) -> None:
    from common import write_results

    from autoft.home import write_text

    done = [row for row in rows if isinstance(row, Row)]
    skipped = {row.fault: row.reason for row in rows if isinstance(row, Skipped)}
    write_results("faults", {"one_change_of": every, "rows": [row.to_dict() for row in done], "skipped": skipped})
    tried = "" if every == 1 else f"Of the changes of files one of {every} was tried.\n\n"
    write_text(ROOT / "docs" / "faults.md", f"{HEAD}{tried}{_table(rows)}\n")


if __name__ == "__main__":
    main()
