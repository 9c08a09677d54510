"""How long do commands take to start, beside the bare imports that the heavy ones cannot do without?

    python benchmarks/startup.py

Whole processes, medians of several runs taken in turn, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import write_results

RUNS = 5
AUTOFT = [sys.executable, "-m", "autoft"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch, transformers, peft": [sys.executable, "-c", "import torch, transformers, peft"],
    "autoft --help": [*AUTOFT, "--help"],
    "autoft probe": [*AUTOFT, "probe"],
    "autoft profiles": [*AUTOFT, "profiles"],
    "autoft estimate": [*AUTOFT, "estimate", "tinyllama-1.1b-chat-v1.0", "--gpu", "rtx-4090"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bare = medians["import torch, transformers, peft"]
    write_results(
        "startup",
        {
            "runs": RUNS,
            "median_s": {name: round(value, 3) for name, value in medians.items()},
            "ratio_to_bare_imports": {name: round(value / bare, 3) for name, value in medians.items()},
        },
    )


if __name__ == "__main__":
    main()
