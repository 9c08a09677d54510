"""How long do commands take to start, beside the bare imports that the heavy ones cannot do without?

    python benchmarks/startup.py [--beside CHECKOUT]

Whole processes, medians of several runs taken in turn, so that a busy machine slows all of them alike. With another
checkout of autoft each command runs there too, right after, and the median of the ratios is written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_results

RUNS = 5
AUTOFT = [sys.executable, "-m", "autoft"]
ESTIMATE = [*AUTOFT, "estimate", "tinyllama-1.1b-chat-v1.0", "--gpu", "rtx-4090"]
ASKED_BEFORE = "autoft estimate, asked before"
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch, transformers, peft": [sys.executable, "-c", "import torch, transformers, peft"],
    "autoft --help": [*AUTOFT, "--help"],
    "autoft probe": [*AUTOFT, "probe"],
    "autoft profiles": [*AUTOFT, "profiles"],
    "autoft estimate": [*ESTIMATE, "--no-cache"],
    ASKED_BEFORE: ESTIMATE,
    "autoft plan": [*AUTOFT, "plan", "tinyllama-1.1b-chat-v1.0", "--gpu", "rtx-4090", "--no-cache"],
}
OURS = [name for name in COMMANDS if name.startswith("autoft")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    other = parser.parse_args().beside
    here = Path(__file__).parents[1]
    elapsed: dict[str, list[float]] = {name: [] for name in COMMANDS}
    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    ratios: dict[str, list[float]] = {name: [] for name in OURS}
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as other_home:
        _timed(COMMANDS[ASKED_BEFORE], home, here)
        if other is not None:
            _timed(COMMANDS[ASKED_BEFORE], other_home, other)
        for _ in range(RUNS):
            for name, command in COMMANDS.items():
                seconds, processor_seconds = _timed(command, home, here)
                elapsed[name].append(seconds)
                processor[name].append(processor_seconds)
                if other is not None and name in OURS:
                    ratios[name].append(processor_seconds / _timed(command, other_home, other)[1])
    medians = {name: statistics.median(times) for name, times in elapsed.items()}
    bare = medians["import torch, transformers, peft"]
    figures = {
        "runs": RUNS,
        "median_s": {name: round(value, 3) for name, value in medians.items()},
        "median_processor_s": {name: round(statistics.median(times), 3) for name, times in processor.items()},
        "ratio_to_bare_imports": {name: round(value / bare, 3) for name, value in medians.items()},
        "load_average": os.getloadavg(),  # above the number of cores others were at work too
    }
    if other is not None:
        figures["beside"] = {
            "commit": _commit(other),
            "ratio_of_processor_time": {name: round(statistics.median(each), 3) for name, each in ratios.items()},
        }
    write_results("startup", figures)


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _timed(command: list[str], home: str, checkout: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor, for a whole process that runs the checkout's autoft."""
    began = time.perf_counter()
    env = {**os.environ, "AUTOFT_HOME": home, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=home)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    return took, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
