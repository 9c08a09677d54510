"""What rows at random, rows of like length side by side, and packed rows make of the same data: the loss after it.

    python benchmarks/arrangements.py --seeds 3

The starter on its task, an optimizer step of four examples in each: padded and grouped are four rows of one, packed is
one row of 480 tokens, which holds four on average. Each run is a process of its own, one after the other, and each is
written as soon as it is done. The loss is that of the held-out rows, which are the same in all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_results

from autoft.trainer.sources.starter import starter_folder

ARRANGEMENTS = {
    "padded": ["--set", "group_by_length=false"],
    "grouped": ["--set", "group_by_length=true"],
    "packed": ["--set", "packing=true", "--seq-len", "480"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    starter_folder(print)
    runs: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        for name, words in ARRANGEMENTS.items():
            runs.append({"arrangement": name, "seed": seed, **_run([*words, "--set", f"seed={seed}"])})
            print(json.dumps(runs[-1]), flush=True)
            write_results("arrangements", {"median_loss": _medians(runs), "runs": runs})


def _run(words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        answers = ["--set", "max_new_tokens=0", "--set", "metric=loss"]  # none is generated: the loss tells it
        command = [sys.executable, "-m", "autoft", "run", "-o", str(out), *words, *answers]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {
        "loss": result["after"]["loss"],
        "loss_before": result["before"]["loss"],
        "steps": result["steps"],
        "tokens": result["tokens"],
    }


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {
        name: statistics.median(found)
        for name in ARRANGEMENTS
        if (found := [run["loss"] for run in runs if run["arrangement"] == name])
    }


if __name__ == "__main__":
    main()
