"""What does a run lose when it is killed, its disk is full, its memory ends, its files are damaged, its machine stopped?

    python benchmarks/faults.py [--quick] [--only WORDS]

Causes each fault for real on a tiny model, in a process of its own, resumes the run, compares its weights with those of
one that nothing has disturbed, and prints the table; without options also into benchmarks/results and docs/faults.md.
Exit code 1 when a row does not hold. --quick: some of the changes of files instead of all. --only: rows with these words.
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

"""


def main() -> None:
    options = argparse.ArgumentParser(description="Cause every fault, and see what it costs.")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--only", default="")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "LD_PRELOAD" not in os.environ:
            shim = compile_shim(Path(folder))
            if shim is not None:
                # the libc of this process, too, has to have it in front
                os.environ["LD_PRELOAD"] = str(shim)
                done = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, *sys.argv])
                sys.exit(done)
        rows = _rows(Scene(Path(folder) / "scene"), chosen.only, every=8 if chosen.quick else 1)
    print(_table(rows))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([row.to_dict() for row in rows if isinstance(row, Row)]), encoding="utf-8")
    if not chosen.quick and not chosen.only:
        _write(rows)
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
            words = (
                f"skipped: {row.reason}"
                if isinstance(row, Skipped)
                else "holds"
                if row.holds
                else f"BROKEN {row.wrong}"
            )
            print(f"{row.fault}, {getattr(row, 'when', '')}: {words}", file=sys.stderr, flush=True)
        print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


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


def _write(rows: list[Row | Skipped]) -> None:
    from common import write_results

    from autoft.home import write_text

    done = [row for row in rows if isinstance(row, Row)]
    skipped = {row.fault: row.reason for row in rows if isinstance(row, Skipped)}
    write_results("faults", {"rows": [row.to_dict() for row in done], "skipped": skipped})
    write_text(ROOT / "docs" / "faults.md", f"{HEAD}{_table(rows)}\n")


if __name__ == "__main__":
    main()
