"""How long do commands take to start, beside the bare imports that the heavy ones cannot do without?

    python benchmarks/startup.py

Whole processes, medians of several runs taken in turn, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

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
}


def main() -> None:
    elapsed: dict[str, list[float]] = {name: [] for name in COMMANDS}
    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as home:
        _timed(COMMANDS[ASKED_BEFORE], home)
        for _ in range(RUNS):
            for name, command in COMMANDS.items():
                seconds, processor_seconds = _timed(command, home)
                elapsed[name].append(seconds)
                processor[name].append(processor_seconds)
    medians = {name: statistics.median(times) for name, times in elapsed.items()}
    bare = medians["import torch, transformers, peft"]
    write_results(
        "startup",
        {
            "runs": RUNS,
            "median_s": {name: round(value, 3) for name, value in medians.items()},
            "median_processor_s": {name: round(statistics.median(times), 3) for name, times in processor.items()},
            "ratio_to_bare_imports": {name: round(value / bare, 3) for name, value in medians.items()},
            "load_average": os.getloadavg(),  # above the number of cores others were at work too
        },
    )


def _timed(command: list[str], home: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor, for a whole process."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "AUTOFT_HOME": home}
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    return took, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
