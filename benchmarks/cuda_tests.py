"""Run tests/cuda on described cards and write what came out: tests, cards, and lines about a GPU that none has run.

    python benchmarks/cuda_tests.py [--quick]      `make test-cuda`

--quick: lines are not counted, and nothing is written. It passes where all tests do and every line that was not run
has its reason in tests/cuda/unvisited.toml.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common import write_results  # noqa: E402 - of this folder

from tests.cuda import lines  # noqa: E402 - of the tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="count no lines and write nothing")
    parser.add_argument("tests", nargs="*", default=["tests/cuda"], help="tests to run (default: tests/cuda)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoft-cuda-") as folder:
        return run(Path(folder), options.tests, quick=options.quick)


def run(folder: Path, tests: list[str], *, quick: bool) -> int:
    """Exit code. folder: for what is of this run alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if not quick:
        environment[lines.VARIABLE] = str(folder)
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "load", f"--junitxml={report}", *tests]
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if quick or not report.exists():
        return code
    total, missed = lines.report(folder)
    unexplained = [line for line in missed if line.reason is None]
    write_results(
        "test_cuda",
        {
            "seconds": round(time.monotonic() - began),
            "tests": counts(report),
            "lines_about_a_gpu": {
                "statements": total,
                "run": total - len(missed),
                "not_run": [asdict(line) for line in missed],
            },
        },
    )
    for line in unexplained:
        print(f"not run: {line.file}:{line.number}: {line.text}")
    return code or (1 if unexplained and tests == ["tests/cuda"] else 0)


def counts(report: Path) -> dict[str, Any]:
    """Tests passed, failed and skipped, with names of those failed and reasons of those skipped."""
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    reasons = {str(case.find("skipped").get("message")) for case in skipped}  # type: ignore[union-attr]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "skipped": len(skipped),
        "reasons": sorted(reasons),
    }


if __name__ == "__main__":
    sys.exit(main())
