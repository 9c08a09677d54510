"""Predicted beside what our trainer's steps really take, on cards that the stand-in describes or on the one here.

    python benchmarks/described_cards.py                 all of described_cases.jsonl, each on its own described card
    python benchmarks/described_cards.py --minutes 9     stops in time; the next call goes on where this one stopped
    python benchmarks/described_cards.py --here          the same cases on this machine's GPU
    python benchmarks/described_cards.py --predict       new predictions beside what was measured; needs no card
    python benchmarks/described_cards.py --report        what has been measured so far

PyTorch must be the CUDA build: `make standin` makes an environment that has it, and the stand-in beside it.
A recipe is loaded from safetensors files and trained for two steps by the trainer's own builders, then evaluated and
saved, each in a process of its own. Compared are PyTorch's own counts of allocated and reserved bytes, phase by phase.
What the stand-in cannot show: what cuDNN, Triton, NCCL and the CUDA context take beside PyTorch, and values.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, heading, write_record
from gpu_validate import STEP, read_cases, this_gpu
from shapes import write_config, write_weights

from autoft.errors import AutoftError
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of
from autoft.planner.memory.replay import OTHER_KEYS
from autoft.planner.rehearsal.layers import pairs
from autoft.planner.search.candidates import exact
from autoft.planner.timing.allreduce import Replicas
from autoft.profiles.detect import detect
from autoft.profiles.hardware import Gpu
from autoft.trainer.runtime import environment
from autoft.trainer.sources.resolve import load_config, resolve

Json = dict[str, Any]
CASES = Path(__file__).with_name("described_cases.jsonl")
# masks and counts are right with it, and autograd adds its gradients as it does on a card
VALUES = Path(__file__).parent.parent / "tests" / "standin" / "values.py"
PHASES = ("load", "first_step", "steady_step", "evaluation", "save")
MEASURES = ("allocated", "reserved")
# Allocated is to be met to the byte in 9 rows of 10 and within a thousandth in all, reserved within a hundredth
FARTHEST = {"allocated": 0.001, "reserved": 0.01}
MOSTLY = 0.9
OTHER_KEYS_OF_CASES = ("id", "card", "shape", "layers", "accumulation")
# Why a row misses: (a part of its id, the phase or "", the measure or "", the cause). The first that fits is told
CAUSES: tuple[tuple[str, str, str, str], ...] = (
    ("int8", "", "", "one column of outliers in a thousand is assumed; a described card's zeros have none"),
    ("packing", "", "", "the batch's second row ends in padding; the estimate takes rows that are full"),
    ("kbit_upcast", "load", "allocated", "the mean of a weight's scales takes 1 KiB, which the rehearsal leaves out"),
    ("loss=selected", "", "reserved", "cached blocks went back at the card's limit; the estimate has none"),
    ("a100-qwen2.5-0.5b-l4-lora-s1024-b4", "", "reserved", "what cub takes to sort indices is left out"),
    ("adapter=oft", "load", "reserved", "what PEFT makes in passing while it builds a rotation is left out"),
    ("adapter=prompt", "evaluation", "allocated", "places of virtual tokens are counted as if they had a loss"),
    ("new_tokens", "load", "allocated", "trained rows are counted as if PEFT widened them before the other weights"),
    ("qwen3-30b-a3b-l2-lora-s512", "", "reserved", "autocast drops its casts in a hash table's order"),
)


def main() -> None:
    options = _options()
    environment.prepare()
    out = Path(options.out) if options.out else RESULTS / "described_cards.json"
    if not (options.report or options.predict):
        _run_all(options, out)
    if not out.exists():
        sys.exit(f"{out}: nothing has been measured yet")
    if options.predict:
        _predict_again(options, out)
    print(report(_read(out)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted beside measured, on described cards.")
    standin = os.environ.get("STANDIN_HOME") or Path(sys.prefix) / "standin"
    parser.add_argument("--standin", type=Path, default=standin, help="folder of the built stand-in (%(default)s)")
    parser.add_argument("--here", action="store_true", help="use this machine's GPU, without the stand-in")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many minutes")
    parser.add_argument("--only", default="", help="cases whose id contains this")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--models", help="folder that keeps the weights for a later call")
    parser.add_argument("--out", help="result file (benchmarks/results/described_cards.json)")
    parser.add_argument("--predict", action="store_true", help="measure nothing, predict what was measured anew")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the summary")
    return parser.parse_args()


# What is run


def _run_all(options: argparse.Namespace, out: Path) -> None:
    deadline = time.monotonic() + 60 * options.minutes
    record = heading("described_cards") | {"cards": {}, "refused": {}, "rows": []}
    if out.exists():
        before = _read(out)
        if before["versions"] != record["versions"]:
            sys.exit(f"{out} was measured with other versions; give another file with --out")
        record = before
    known = set() if options.again else {row["case"]["id"] for row in record["rows"]}
    cases = [case for case in read_cases(CASES) if options.only in case["id"] and case["id"] not in known]
    with tempfile.TemporaryDirectory() as temporary:
        predict = Predictor(Path(temporary) / "configs")
        models = Path(options.models or temporary) / "models"
        worker: Worker | None = None
        for case in cases:
            if time.monotonic() > deadline:
                break
            card = "here" if options.here else case["card"]
            if card not in record["cards"]:
                record["cards"][card] = _gpu_of(card, options.standin)
            gpu = Gpu.from_dict(record["cards"][card])
            try:
                predicted, recipe = predict(case, gpu)
            except AutoftError as error:
                record["refused"][case["id"]] = error.what
                continue
            if worker is None or worker.card != card:
                if worker is not None:
                    worker.close()
                worker = Worker(card, options.standin)
            folder = models / _folder(case)
            write_weights(case["shape"], folder, case.get("layers"), empty=not options.here)
            row = {"case": case, "card": card, "predicted": predicted, "measured": worker.measure(case, recipe, folder)}
            others = [other for other in record["rows"] if other["case"]["id"] != case["id"]]
            record["rows"] = sorted([*others, row], key=lambda row: row["case"]["id"])
            _write(out, record)
            print(_told(row), file=sys.stderr, flush=True)
        if worker is not None:
            worker.close()


def _predict_again(options: argparse.Namespace, out: Path) -> None:
    """New predictions beside old measurements, which need no card."""
    record = _read(out)
    with tempfile.TemporaryDirectory() as temporary:
        predict = Predictor(Path(temporary))
        for row in record["rows"]:
            if options.only in row["case"]["id"]:
                row["predicted"], _ = predict(row["case"], Gpu.from_dict(record["cards"][row["card"]]))
                print(_told(row), file=sys.stderr, flush=True)
    _write(out, record)


class Worker:
    """A process on one card that answers each request in a fork of its own; `gpu_step.py --serve`."""

    def __init__(self, card: str, standin: Path) -> None:
        self.card = card
        command = [sys.executable, str(STEP), "--serve"]
        if card != "here":
            launcher = [sys.executable, str(standin / "standin.py"), "--card", card, "--"]
            command = [*launcher, sys.executable, str(VALUES), *command[1:]]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment.of_child()
        )

    def measure(self, case: Json, recipe: Json, weights: Path) -> Json:
        """Phases as (allocated, reserved), or where the run died, or what went wrong."""
        request = {
            "recipe": recipe, "weights": str(weights), "device": "cuda", "gpu": None, "card_bytes": None,
            "cap_bytes": None, "alone": False, "timed": False, "after": True,
            "accumulation": case.get("accumulation", 1),
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return _phases_of(json.loads(line))
        return {"error": "the worker ended without an answer"}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _phases_of(told: Json) -> Json:
    """What gpu_step.py tells, the parts of the steady step as one."""
    if "error" in told or "died_in" in told:
        return {key: told[key] for key in ("error", "died_in") if key in told}
    steady = ("forward", "backward", "optimizer")
    found: dict[str, list[int]] = {}
    for measure, figures in enumerate((told["phases"], told["reserved"])):
        whole = {"steady_step": max(figures[name] for name in steady), **figures}
        for phase in PHASES:
            found.setdefault(phase, [0, 0])[measure] = whole[phase]
    return {"phases": found} | ({"retries": told["retries"]} if told.get("retries") else {})


def _gpu_of(card: str, standin: Path) -> Json:
    """What `autoft probe` sees of a card."""
    if card == "here":
        return this_gpu().to_dict()
    code = "import json; from autoft.profiles.detect import detect; print(json.dumps(detect().gpus[0].to_dict()))"
    command = [sys.executable, str(standin / "standin.py"), "--card", card, "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment.of_child())
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _folder(case: Json) -> str:
    return case["shape"] + (f"-{case['layers']}" if "layers" in case else "")


# What is predicted


class Predictor:
    """What autoft says of a case on a card, which need not be here. configs: a folder to write to."""

    def __init__(self, configs: Path) -> None:
        self.hardware = detect()
        self.configs = configs
        self._estimators: dict[Any, Estimator] = {}

    def __call__(self, case: Json, gpu: Gpu) -> tuple[Json, Json]:
        """(phases as (allocated, reserved) and whether it fits, the recipe). Raises: ModelError."""
        hardware = replace(self.hardware, gpus=(gpu,))
        target = target_of(hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda *_: 1.0)
        key = (_folder(case), gpu.name)
        if key not in self._estimators:
            folder = write_config(case["shape"], self.configs / _folder(case), case.get("layers"))
            self._estimators[key] = Estimator(_folder(case), load_config(resolve(str(folder))), target)
        estimator = self._estimators[key]
        pins = {name: value for name, value in case.items() if name not in OTHER_KEYS_OF_CASES}
        recipe = exact(target, seq_len=pins.pop("seq_len"), pinned=pins)
        replicas = Replicas(accumulation=case.get("accumulation", 1))
        estimate = estimator.estimate(recipe, replicas=replicas)
        predicted = {
            "fits": estimate.fits,
            "device_bytes": estimate.device_bytes,
            "available_bytes": estimate.available_bytes,
            "phases": phases(estimator, estimator.rehearse(recipe, replicas=replicas)),
        }
        return predicted, recipe.to_dict()


def phases(estimator: Estimator, rehearsal: Any) -> dict[str, list[int]]:
    """Peaks of allocated and reserved bytes: of a run's phases, of an evaluation's loss, and of what a save finds."""
    allocator = estimator.allocator()
    found: dict[str, list[int]] = {}

    def run(name: str, events: Any) -> None:
        allocator.reset_peaks()
        allocator.run(pairs(events))
        peaks = [allocator.peak_allocated, allocator.peak_reserved]
        found[name] = [max(pair) for pair in zip(peaks, found.get(name, (0, 0)), strict=True)]

    for number, phase in enumerate(rehearsal.phases):
        steady = number >= rehearsal.steady
        run("steady_step" if steady else phase.name if phase.name == "load" else "first_step", phase.events)
        if phase.empty_cache:
            allocator.empty_cache()
    loss = rehearsal.evaluation["loss"].events.copy()
    loss[:, 0] -= OTHER_KEYS
    run("evaluation", loss)
    allocator.reset_peaks()
    found["save"] = [allocator.peak_allocated, allocator.peak_reserved]
    return found


# What comes of it


def _read(out: Path) -> Json:
    return dict(json.loads(out.read_text(encoding="utf-8")))


def _write(out: Path, record: Json) -> None:
    for row in record["rows"]:
        row["misses"] = misses(row)
    write_record(out, {**record, "summary": summary(record["rows"])})


def errors(row: Json, measure: str) -> dict[str, float]:
    """Predicted over measured, less one, by phase; 0.0 where they are equal."""
    if "phases" not in row["measured"]:
        return {}
    at = MEASURES.index(measure)
    real, foreseen = row["measured"]["phases"], row["predicted"]["phases"]
    return {phase: foreseen[phase][at] / real[phase][at] - 1 for phase in PHASES}


def misses(row: Json) -> list[Json]:
    """Every figure that is not met to the byte, with its cause where it is known."""
    return [
        {
            "phase": phase,
            "measure": measure,
            "error": round(error, 7),
            "cause": _cause(row["case"]["id"], phase, measure),
        }
        for measure in MEASURES
        for phase, error in errors(row, measure).items()
        if error
    ]


def _cause(name: str, phase: str, measure: str) -> str | None:
    return next((why for part, p, m, why in CAUSES if part in name and p in ("", phase) and m in ("", measure)), None)


def summary(rows: list[Json]) -> Json:
    """Of the rows that lived: how many are met to the byte in all their phases, and the farthest, by measure."""
    lived = [row for row in rows if "phases" in row["measured"]]
    found: Json = {"rows": len(rows), "lived": len(lived)}
    for measure in MEASURES:
        by_row = {row["case"]["id"]: errors(row, measure) for row in lived}
        worst = {name: max(found.values(), key=abs) for name, found in by_row.items()}
        far = sorted(name for name, error in worst.items() if abs(error) > FARTHEST[measure])
        found[measure] = {
            "equal": sum(error == 0 for error in worst.values()),
            "median": statistics.median(map(abs, worst.values())) if worst else 0.0,
            "worst": max(worst.values(), key=abs, default=0.0),
            "worst_row": max(worst, key=lambda name: abs(worst[name]), default=""),
            "too_far": far,
            "phases": {
                phase: {
                    "equal": sum(found[phase] == 0 for found in by_row.values()),
                    "worst": max((found[phase] for found in by_row.values()), key=abs, default=0.0),
                }
                for phase in PHASES
            },
        }
    found["unexplained"] = sorted({row["case"]["id"] for row in lived for miss in misses(row) if not miss["cause"]})
    died = [row for row in rows if "died_in" in row["measured"]]
    found["died"] = {row["case"]["id"]: [row["measured"]["died_in"], row["predicted"]["fits"]] for row in died}
    found["wrong_fits"] = sorted(
        row["case"]["id"]
        for row in rows
        if "error" not in row["measured"] and ("died_in" in row["measured"]) != (row["predicted"]["fits"] == "no")
    )
    found["failed"] = {row["case"]["id"]: row["measured"]["error"] for row in rows if "error" in row["measured"]}
    return found


def report(record: Json) -> str:
    """For people."""
    told = summary(record["rows"])
    versions = record["versions"]
    lines = [
        f"{told['rows']} recipes on {len(record['cards'])} cards, {told['lived']} lived; torch {versions['torch']}, "
        f"transformers {versions['transformers']}, {record['date']}"
    ]
    for measure in MEASURES:
        of_rows = told[measure]
        goal = f"goal {MOSTLY * told['lived']:.0f}, {FARTHEST[measure]:.1%}"
        lines.append(
            f"{measure:<12}equal in {of_rows['equal']} rows, farthest {of_rows['worst']:+.3%} "
            f"({of_rows['worst_row']}; {goal})"
        )
        for phase, figures in of_rows["phases"].items():
            lines.append(f"  {phase:<14}{figures['equal']:>4} equal  farthest {figures['worst']:+.4%}")
    for row in record["rows"]:
        lines.extend(
            f"miss: {row['case']['id']}: {miss['phase']} {miss['measure']} {miss['error']:+.4%}: {miss['cause'] or '?'}"
            for miss in misses(row)
        )
    lines += [f"died: {name}: in {where}, told to fit: {fits}" for name, (where, fits) in told["died"].items()]
    lines += [f"wrong: {name}" for name in told["wrong_fits"]]
    lines += [f"failed: {name}: {why}" for name, why in told["failed"].items()]
    lines += [f"no estimate: {name}: {why}" for name, why in record["refused"].items()]
    return "\n".join(lines)


def _told(row: Json) -> str:
    """One line on one row."""
    measured = row["measured"]
    if "phases" not in measured:
        return f"{row['case']['id']}: fits {row['predicted']['fits']}, {measured}"
    farthest = {measure: max(errors(row, measure).values(), key=abs) for measure in MEASURES}
    figures = ", ".join(f"{measure} {error:+.3%}" if error else f"{measure} =" for measure, error in farthest.items())
    return f"{row['case']['id']}: fits {row['predicted']['fits']}, {figures}"


if __name__ == "__main__":
    main()
