"""Predicted against measured: the runs of tests/validation that other people made with Hugging Face's own loop.

    python benchmarks/measured_runs.py

No figure of these rows is used by the estimate; they only judge it. Peaks are those of the steady step.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import write_results

from autoft.planner.estimate import Estimate
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of
from autoft.planner.memory.allocator import Allocator
from autoft.planner.plan.cases import Case, estimates, loop_of, read_cases
from autoft.planner.rehearsal.layers import pairs
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.profiles.detect import detect
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_config, resolve

ROWS = Path(__file__).parent.parent / "tests" / "validation"
FILES = ("t4.jsonl", "rtx4080.jsonl", "a100-older-stacks.jsonl")


def main() -> None:
    hardware = detect()
    runs = []
    for name in FILES:
        rows = [json.loads(line) for line in (ROWS / name).read_text(encoding="utf-8").splitlines()]
        for row, (case, recipe, estimate) in zip(rows, estimates(cases_of(name), hardware), strict=True):
            predicted = {**_peaks(estimate), **_held(rehearsed(case, recipe, hardware))}
            runs.append(
                {**_compared(row, predicted, name.removesuffix(".jsonl")), "step_time_s": _timed(row, estimate)}
            )
            print(f"{row['id']}: allocated {runs[-1]['error']['peak_allocated_bytes']:+.3%}")
    keys = dict.fromkeys(key for run in runs for key in run["error"])
    summary = {key: _summary(runs, key) for key in keys}
    write_results("measured_runs", {"summary": summary, "step_time": _step_times(runs), "runs": runs})


def cases_of(name: str) -> list[Case]:
    """Of a file of rows. A model that is not in the catalogue has its configuration in models/."""
    folders = [(case, ROWS / "models" / case.model.replace("/", "--")) for case in read_cases(ROWS / name)]
    return [replace(case, model=str(folder)) if folder.is_dir() else case for case, folder in folders]


def _peaks(estimate: Estimate) -> dict[str, float]:
    """Under the names that the measured rows use."""
    phases = ("forward", "backward", "optimizer")
    return {
        "peak_allocated_bytes": estimate.peak_allocated_bytes,
        "peak_reserved_bytes": estimate.peak_reserved_bytes,
        "device_bytes": estimate.device_bytes,
        "trainable_params": estimate.trainable_params,
        "total_params": estimate.total_params,
        **{f"peak_{name}_bytes": estimate.phases[name] for name in phases},
    }


def rehearsed(case: Case, recipe: Recipe, hardware: Any) -> Rehearsal:
    """The events of a measured run."""
    config = load_config(resolve(case.model))
    target = target_of(hardware, gpu_name=case.gpu, vram_gib=None, cpu_flops_per_s=lambda *_: 1.0)
    device = Estimator(case.model, config, target, torch=case.torch).device
    depth, loop = find_depth(recipe, config), loop_of(case, config.model_type)
    return rehearse(recipe, config, device, depth=depth, loop=loop, backend=case.backend)


def _held(rehearsal: Rehearsal) -> dict[str, int]:
    """What is allocated when loading has ended, and when the first forward has; the Estimate tells peaks alone."""
    allocator = Allocator()
    held: dict[str, int] = {}
    for phase in rehearsal.phases:
        if phase.name not in ("load", "forward"):
            break
        allocator.run(pairs(phase.events))
        held[phase.name] = allocator.allocated
        if phase.empty_cache:
            allocator.empty_cache()
    return {"allocated_after_load_bytes": held["load"], "allocated_after_first_forward_bytes": held["forward"]}


def _compared(row: dict[str, Any], predicted: dict[str, float], card: str) -> dict[str, Any]:
    """error: predicted over measured, less one; of every figure that was measured and is predicted as one number."""
    measured = row["measured"]
    keys = [key for key in predicted if key in measured]
    return {
        "id": row["id"],
        "card": card,
        "predicted": {key: predicted[key] for key in keys},
        "measured": {key: measured[key] for key in keys},
        "error": {key: round(predicted[key] / measured[key] - 1, 6) for key in keys},
    }


def _summary(runs: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Of the errors' sizes. exact: runs in which predicted and measured are the same number."""
    found = {run["id"]: abs(run["error"][key]) for run in runs if key in run["error"]}
    worst = max(found, key=lambda run: found[run])
    exact = sum(run["predicted"][key] == run["measured"][key] for run in runs if key in run["error"])
    return {
        "runs": len(found),
        "median": round(statistics.median(found.values()), 6),
        "worst": found[worst],
        "worst_run": worst,
        "exact": exact,
    }


def _timed(row: dict[str, Any], estimate: Estimate) -> dict[str, Any]:
    """A step as measured, and between which seconds it was predicted."""
    predicted, measured = estimate.step_time_s, row["measured"]["step_time_s"]
    return {
        "lower": round(predicted.lower, 4),
        "upper": round(predicted.upper, 4),
        "measured": measured,
        "inside": predicted.lower <= measured <= predicted.upper,
    }


def _step_times(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How many steps took what was predicted, how wide the ranges are, and where in them the steps lie.

    Widths: upper over lower. Of the middle: measured over the geometric middle.
    """
    times = [run["step_time_s"] for run in runs]
    widths = [time["upper"] / time["lower"] for time in times]
    of_middle = sorted(time["measured"] / math.sqrt(time["lower"] * time["upper"]) for time in times)
    return {
        "runs": len(times),
        "inside": sum(time["inside"] for time in times),
        "median_width": round(statistics.median(widths), 3),
        "widest": round(max(widths), 3),
        "measured_over_middle": {
            "least": round(of_middle[0], 3),
            "median": round(statistics.median(of_middle), 3),
            "most": round(of_middle[-1], 3),
        },
    }


if __name__ == "__main__":
    main()
