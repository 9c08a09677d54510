"""How long do `autoft fit` and `autoft compare` take, beside a cold `autoft plan` of the same model?

    python benchmarks/question_speed.py [--runs 3]

Whole processes in turn, each with a cache folder of its own; medians. CPU seconds are those of a process and its
children, and change less with what else the machine does. The ratios to a plan are of each round by itself.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from common import write_results

MODEL = "qwen2.5-7b-instruct"
QUESTIONS = {
    "plan": ["plan", MODEL, "--gpu", "rtx-3060"],
    "fit_longest": ["fit", MODEL, "--gpu", "rtx-3060", "--longest"],
    "compare": ["compare", MODEL, "--gpu", "rtx-3060"],
    "fit_cards": ["fit", MODEL, "--cards"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    wall_s: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    cpu_s: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    for _ in range(runs):
        for name, words in QUESTIONS.items():
            wall, cpu = _seconds(words)
            wall_s[name].append(wall)
            cpu_s[name].append(cpu)
    over_plan = {name: _median_ratio(times, wall_s["plan"]) for name, times in wall_s.items() if name != "plan"}
    for name, times in wall_s.items():
        print(f"{name}: {statistics.median(times):.2f} s, CPU {statistics.median(cpu_s[name]):.2f} s")
    write_results(
        "question_speed",
        {
            "runs": runs,
            "model": MODEL,
            "median_s": {name: round(statistics.median(times), 2) for name, times in wall_s.items()},
            "median_cpu_s": {name: round(statistics.median(times), 2) for name, times in cpu_s.items()},
            "all_s": {name: [round(value, 2) for value in times] for name, times in wall_s.items()},
            "over_plan": over_plan,
            "load_average": os.getloadavg(),  # above the number of cores others were at work too
        },
    )


def _median_ratio(times: list[float], plans: list[float]) -> float:
    return round(statistics.median(one / plan for one, plan in zip(times, plans, strict=True)), 2)


def _seconds(words: list[str]) -> tuple[float, float]:
    """(wall, CPU) of a process with a cold cache."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "AUTOFT_HOME": home, "HF_HUB_OFFLINE": "1"}
        began, used = time.perf_counter(), _cpu_of_children()
        subprocess.run([sys.executable, "-m", "autoft", *words, "--json"], env=env, capture_output=True, check=True)
        return time.perf_counter() - began, _cpu_of_children() - used


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
