"""How long does an estimate take, and how much memory of the host, beside the bare imports that it cannot do without?

    python benchmarks/planner_speed.py [--runs 5] [--cases-runs 5]

Whole processes in turn, so that a busy machine slows all alike; medians. Every estimate is a fresh one: each process
gets a cache folder of its own. The models are folders with a config.json and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from common import write_results
from shapes import write_config

IMPORTS = "import torch, transformers, peft"
MOE = "qwen3-30b-a3b"
MODELS = ("llama-3.1-8b", "llama-3.1-70b", MOE)
CARD = ("--gpu", "rtx-4090")
MANY = "100 recipes of llama-3.1-8b"
# What an estimate may add to the imports, in seconds, and its process take, in bytes: issue 4, "Speed"
BARS_S = {"llama-3.1-8b": 1.5, "llama-3.1-70b": 3.0, MOE: 3.0, MANY: 10.0}
BAR_BYTES = 2 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases-runs", type=int, default=5, help=f"runs of the {MANY}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {IMPORTS: [sys.executable, "-c", IMPORTS]}
        for model in MODELS:
            estimate = [sys.executable, "-m", "autoft", "estimate", str(write_config(model, folder / model)), *CARD]
            experts = ("--set", "experts_4bit=true") if model == MOE else ()
            commands[model] = [*estimate, "--method", "qlora", "--checkpointing", *experts]
        cases = folder / "cases.jsonl"
        cases.write_text("".join(json.dumps(case) + "\n" for case in _hundred(folder / MODELS[0])), encoding="utf-8")
        commands[MANY] = [sys.executable, "-m", "autoft", "estimate", "--cases", str(cases), *CARD]
        seconds: dict[str, list[float]] = {what: [] for what in commands}
        peaks: dict[str, list[int]] = {what: [] for what in commands}
        for run in range(max(options.runs, options.cases_runs)):
            for what, words in commands.items():
                if run < (options.cases_runs if what == MANY else options.runs):
                    took, peak = _timed(words, tempfile.mkdtemp(dir=folder))
                    seconds[what].append(took)
                    peaks[what].append(peak)
    median_s = {what: statistics.median(times) for what, times in seconds.items()}
    peak_bytes = {what: max(found) for what, found in peaks.items()}
    # of each round by itself: how busy the machine is changes from one to the next
    over_imports_s = {
        what: round(statistics.median(t - bare for t, bare in zip(times, seconds[IMPORTS], strict=False)), 2)
        for what, times in seconds.items()
        if what != IMPORTS
    }
    write_results(
        "planner_speed",
        {
            "runs": {what: len(times) for what, times in seconds.items()},
            "median_s": {what: round(value, 2) for what, value in median_s.items()},
            "all_s": {what: [round(value, 2) for value in times] for what, times in seconds.items()},
            "over_imports_s": over_imports_s,
            "bar_s": BARS_S,
            "peak_bytes": peak_bytes,
            "bar_bytes": BAR_BYTES,
            "load_average": os.getloadavg(),  # above the number of cores others were at work too
            "bars_met": {what: over_imports_s[what] <= bar for what, bar in BARS_S.items()}
            | {"memory": max(peak_bytes.values()) <= BAR_BYTES},
        },
    )


def _hundred(model: Path) -> list[dict[str, object]]:
    """Method x checkpointing x sequence x micro-batch."""
    lengths, batches = (512, 1024, 2048, 4096, 8192), (1, 2, 3, 4, 8)
    return [
        {"model": str(model), "method": method, "gradient_checkpointing": again, "seq_len": length, "micro_batch": rows}
        for method, again, length, rows in itertools.product(("lora", "qlora"), (False, True), lengths, batches)
    ]


def _timed(words: list[str], home: str) -> tuple[float, int]:
    """Seconds and peak bytes of a process, those that it forks included; exit code 3 only says that nothing fits."""
    environ = {**os.environ, "AUTOFT_HOME": home, "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as beside:
        peak = beside.submit(_peak_bytes, process.pid, ended)
        process.wait()
        took = time.perf_counter() - began
        ended.set()
    if process.returncode not in (0, 3):
        sys.exit(f"{' '.join(words)}: exit code {process.returncode}")
    return took, peak.result()


def _peak_bytes(pid: int, ended: threading.Event) -> int:
    """The most that a process and its children were seen to hold, looked at twice a second until `ended`."""
    peak = 0
    while not ended.wait(0.5):
        peak = max(peak, _family_bytes(pid))
    return peak


def _family_bytes(pid: int) -> int:
    """Resident bytes of a process and its children; where Linux tells, what they share counts once (PSS)."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                full = process.memory_full_info()
                total += getattr(full, "pss", full.rss)
    return total


if __name__ == "__main__":
    main()
