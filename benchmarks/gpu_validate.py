"""Predicted against measured on this machine's GPU: real steps of models of real shapes, one fresh process a recipe.

    python benchmarks/gpu_validate.py                 all of gpu_cases.jsonl, first free, then under memory caps
    python benchmarks/gpu_validate.py --minutes 9     stops in time; the next call goes on where this one stopped
    python benchmarks/gpu_validate.py --jobs 6 --timed 8   quicker: only the first eight are alone, and so timed
    python benchmarks/gpu_validate.py --predict       new predictions beside what has been measured; needs no GPU
    python benchmarks/gpu_validate.py --report        the summary of what has been measured so far, against the goals
    python benchmarks/gpu_validate.py --smoke         the same on this CPU with tiny models, to see that it works

A recipe gets the trainer's own model, loss and optimizer, on random weights that are loaded from safetensors files as a
downloaded model is. Its first step and its second are measured phase by phase, three more are timed. A cap leaves the
process as much memory as a smaller card would: a run that is told to fit must then live. Runs side by side (--jobs)
have peaks of their own, but no times. Each result is written as soon as it is there.

Left out: the trainer's data loading, float16's gradient scaler, checkpoints and evaluation.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from child import ask
from common import RESULTS, heading, write_record
from shapes import write_config
from side_by_side import GIB, SideBySide, Weights

from autoft.errors import AutoftError
from autoft.planner.estimator.target import target_of
from autoft.planner.timing.roofline import measure_cpu_flops
from autoft.profiles.detect import detect
from autoft.profiles.hardware import Gpu
from autoft.trainer.runtime import environment

Json = dict[str, Any]
CASES = Path(__file__).with_name("gpu_cases.jsonl")
STEP = Path(__file__).with_name("gpu_step.py")
CAPS_GIB = (8, 12, 16, 24)
RUN_TIMEOUT_S = 900
SMOKE_CASES: list[Json] = [
    {"id": "tiny-lora", "shape": "tiny-llama", "method": "lora", "seq_len": 512, "micro_batch": 4, "loss": "logits"},
    {"id": "tiny-qlora", "shape": "tiny-qwen3", "method": "qlora", "seq_len": 512, "micro_batch": 2, "loss": "logits"},
    {"id": "tiny-packed", "shape": "tiny-llama", "method": "lora", "seq_len": 512, "micro_batch": 2, "packing": True},
]
SMOKE_CAPS_GIB = (0.1, 8)
WRITING = threading.Lock()


def main() -> None:
    options = _options()
    environment.prepare()
    out = Path(options.out) if options.out else RESULTS / ("gpu_validate.json" if not options.smoke else "smoke.json")
    if not (options.report or options.predict):
        _run_all(options, out)
    if not out.exists():
        sys.exit(f"{out}: nothing has been measured yet")
    if options.predict:
        _predict_again(out)
    print(report(_read(out)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured on this machine's GPU.")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many minutes")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of those that are not timed")
    parser.add_argument("--timed", type=int, default=sys.maxsize, help="time the first so many cases, each alone")
    parser.add_argument("--only", default="", help="cases whose id contains this")
    parser.add_argument("--weights", help="folder that keeps the random weights for a later call")
    parser.add_argument("--out", help="result file; default benchmarks/results/gpu_validate.json")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--predict", action="store_true", help="measure nothing, predict what was measured anew")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the summary")
    return parser.parse_args()


# What is run, and in which order


def _run_all(options: argparse.Namespace, out: Path) -> None:
    deadline = time.monotonic() + 60 * options.minutes
    gpu = None if options.smoke else this_gpu()
    record = heading("gpu_validate") | {"gpu": gpu.to_dict() if gpu else None, "refused": {}, "runs": []}
    if out.exists():
        before = _read(out)
        if (before["machine"]["gpus"], before["versions"]) != (record["machine"]["gpus"], record["versions"]):
            sys.exit(f"{out} was measured on another card or with other versions; give another file with --out")
        record = before
    cases = [case for case in (SMOKE_CASES if options.smoke else read_cases()) if options.only in case["id"]]
    with environment.hidden_gpus(), tempfile.TemporaryDirectory() as temporary:
        predict = Predictor(gpu, Path(temporary) / "configs")
        weights = Weights(Path(options.weights or temporary) / "weights")

        def run(todo: list[tuple[Json, float | None]], *, jobs: int, alone: bool) -> None:
            with SideBySide(jobs, math.inf if gpu is None else gpu.total_bytes) as running:
                for case, cap in todo:
                    before = _found(record, case, cap)
                    if before and (not alone or before["alone"]):
                        continue
                    if time.monotonic() > deadline:
                        break
                    try:
                        planned = predict(case, cap) | {"alone": alone}
                    except AutoftError as error:
                        record["refused"][case["id"]] = error.what
                        continue
                    folder = weights.of(case["shape"], planned["predicted"]["total_params"], running)
                    needed = planned["card_bytes"] or planned["predicted"]["device_bytes"]
                    one = functools.partial(_one, record, out, case, planned, folder)
                    running.start(needed, case["shape"], one)

        run([(case, None) for case in cases[: options.timed]], jobs=1, alone=True)
        rest = sorted(cases[options.timed :], key=lambda case: str(case["shape"]))
        run([(case, None) for case in rest], jobs=options.jobs, alone=False)
        capped = [(case, cap) for cap in predict.caps_gib for case in cases if _found(record, case, None)]
        run(sorted(capped, key=lambda job: _distance(record, *job)), jobs=options.jobs, alone=False)


def _one(record: Json, out: Path, case: Json, planned: Json, weights: Path) -> None:
    request = {key: planned[key] for key in ("recipe", "device", "gpu", "card_bytes", "cap_bytes", "alone")}
    run = planned | {"case": case, "measured": run_child(request | {"weights": str(weights)})}
    with WRITING:
        others = [other for other in record["runs"] if _key(other) != _key(run)]
        record["runs"] = sorted([*others, run], key=lambda run: (run["cap_gib"] or 0, run["case"]["id"]))
        _write(out, record)
    print(_told(run), file=sys.stderr, flush=True)


def _predict_again(out: Path) -> None:
    record = _read(out)
    for run in predict_again(record["runs"], record["gpu"]):
        print(_told(run), file=sys.stderr, flush=True)
    _write(out, record)


def predict_again(runs: Iterable[Json], gpu: Json | None) -> Iterator[Json]:
    """Each run with a new prediction beside its old measurement, which needs no GPU. gpu: that it was measured on."""
    with environment.hidden_gpus(), tempfile.TemporaryDirectory() as temporary:
        predict = Predictor(None if gpu is None else Gpu.from_dict(gpu), Path(temporary))
        for run in runs:
            run["predicted"] = predict(run["case"], run["cap_gib"])["predicted"]
            yield run


def read_cases(path: Path = CASES) -> list[Json]:
    """The recipes, the most telling first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read(out: Path) -> Json:
    return dict(json.loads(out.read_text(encoding="utf-8")))


def _write(out: Path, record: Json) -> None:
    write_record(out, {**record, "summary": summary(record["runs"])})


def _found(record: Json, case: Json, cap: float | None) -> Json | None:
    return next((run for run in record["runs"] if _key(run) == (case["id"], cap)), None)


def _key(run: Json) -> tuple[str, float | None]:
    return run["case"]["id"], run["cap_gib"]


def _distance(record: Json, case: Json, cap: float) -> float:
    """How far a cap is from what the recipe needs: the nearest tells most."""
    run = _found(record, case, None)
    assert run is not None
    return abs(math.log(run["predicted"]["device_bytes"] / (cap * GIB)))


# What is predicted


def this_gpu() -> Gpu:
    """The GPU that a run would train on. PyTorch must not look for it here: planning is to touch no GPU."""
    gpu = target_of(detect(), gpu_name=None, vram_gib=None, cpu_flops_per_s=measure_cpu_flops).gpu
    if gpu is None:
        sys.exit("NVML finds no GPU here: autoft probe tells why, and --smoke runs the same on the CPU")
    return gpu


class Predictor:
    """What autoft tells of a case on `gpu`, which need not be here; None is this CPU. configs: a folder to write to."""

    def __init__(self, gpu: Gpu | None, configs: Path) -> None:
        self.hardware = replace(detect(), gpus=(gpu,) if gpu else ())
        self.configs = configs
        card_gib = gpu.total_bytes / GIB if gpu else math.inf
        self.caps_gib = [cap for cap in (CAPS_GIB if gpu else SMOKE_CAPS_GIB) if cap < card_gib]
        self._estimators: dict[Any, Any] = {}
        self._cpu_flops = functools.cache(measure_cpu_flops)

    def __call__(self, case: Json, cap_gib: float | None) -> Json:
        """The prediction and what a child must know for its run. cap_gib: memory of the card stood for.

        Raises: ModelError.
        """
        from autoft.planner.estimator.estimate_recipe import Estimator
        from autoft.planner.search.candidates import exact
        from autoft.trainer.sources.resolve import load_config, resolve

        cpu = None if self.hardware.gpus else "cpu"
        target = target_of(self.hardware, gpu_name=cpu, vram_gib=cap_gib, cpu_flops_per_s=self._cpu_flops)
        key = (case["shape"], cap_gib)
        if key not in self._estimators:
            folder = write_config(case["shape"], self.configs / case["shape"])
            self._estimators[key] = Estimator(case["shape"], load_config(resolve(str(folder))), target)
        pins = {name: value for name, value in case.items() if name not in ("id", "shape")}
        seq_len = pins.pop("seq_len")
        recipe = exact(target, seq_len=seq_len, pinned=pins)
        estimator = self._estimators[key]
        estimate = estimator.estimate(recipe).to_dict()
        if target.bench is not None:
            by_data_sheet = estimator.on(replace(target, bench=None), same_kernels=True).estimate(recipe)
            estimate["step_time_by_data_sheet_s"] = by_data_sheet.step_time_s.to_dict()
        card_bytes = None if cap_gib is None else int(cap_gib * GIB)
        return {
            "cap_gib": cap_gib,
            "recipe": recipe.to_dict(),
            "predicted": estimate | {"context_bytes": target.device_bytes(0)},
            "device": target.device,
            "gpu": target.gpu.uuid if target.gpu else None,
            "card_bytes": card_bytes,
            # the CUDA context is not PyTorch's, so the cap must leave it out
            "cap_bytes": None if card_bytes is None else card_bytes - target.device_bytes(0),
        }


def run_child(request: Json) -> Json:
    """What gpu_step.py tells, or how its process ended without telling."""
    environ = {**os.environ} | ({"CUDA_VISIBLE_DEVICES": request["gpu"]} if request["gpu"] else {})
    return ask([sys.executable, str(STEP)], request, timeout_s=RUN_TIMEOUT_S, environ=environ)


# What comes of it


def summary(runs: list[Json]) -> Json:
    """Errors (predicted over measured, less one) of the runs without a cap, and what became of those under one."""
    lived = [run for run in runs if run["cap_gib"] is None and "peak_allocated_bytes" in run["measured"]]
    errors = {}
    for name in ("peak_allocated_bytes", "peak_reserved_bytes", "device_bytes", "context_bytes"):
        errors[name] = _spread({run["case"]["id"]: _error(run, name) for run in lived if name in run["measured"]})
    for phase in dict.fromkeys(phase for run in lived for phase in run["measured"]["phases"]):
        errors[phase] = _spread(
            {
                run["case"]["id"]: run["predicted"]["phases"][phase] / run["measured"]["phases"][phase] - 1
                for run in lived
            }
        )
    timed = [run for run in lived if "step_time_s" in run["measured"]]
    in_range = [run for run in timed if _in_range(run)]
    fits: Json = {word: {"lived": 0, "retried": 0, "died": 0} for word in ("yes", "tight", "no")}
    wrong = []
    for run in runs:
        word, measured = run["predicted"]["fits"], run["measured"]
        died = "died_in" in measured
        # a run with the whole card to itself that was told to fit, and did, tells nothing
        if "error" in measured or (run["cap_gib"] is None and word == "yes" and not died):
            continue
        fits[word]["died" if died else "retried" if measured.get("retries") else "lived"] += 1
        if died != (word == "no"):
            wrong.append(_name(run))
    return {
        "runs": len(lived),
        "errors": {name: spread for name, spread in errors.items() if spread},
        "time_in_range": [len(in_range), len(timed)],
        "fits": fits,
        "wrong": wrong,
        "failed": {_name(run): run["measured"]["error"] for run in runs if "error" in run["measured"]},
    }


def report(record: Json) -> str:
    """For people; the goals are those of a run on a GPU."""
    found = summary(record["runs"])
    machine = record["machine"]
    where = f"{record['gpu']['name']}, driver {machine['driver']}" if record["gpu"] else machine["cpu"]
    lines = [f"{found['runs']} recipes on {where}, torch {record['versions']['torch']}, {record['date']}"]
    goals = {"peak_allocated_bytes": "goal 0.1%, 1%", "peak_reserved_bytes": "goal 1%, 3%"}
    lines.append(f"{'predicted / measured':<22}{'median':>9}{'worst':>9}")
    for name, spread in found["errors"].items():
        label, goal = name.removesuffix("_bytes").replace("_", " "), goals.get(name, "")
        lines.append(f"{label:<22}{spread['median']:>9.2%}{spread['worst']:>+9.2%}  {goal:<16}{spread['worst_run']}")
    inside, timed = found["time_in_range"]
    lines.append(f"step time in the predicted range: {inside} of {timed} (goal 9 of 10)")
    lines.append(f"{'told to fit':<22}{'lived':>9}{'retried':>9}{'died':>9}")
    for word, ended in found["fits"].items():
        goal = {"yes": "  goal: none dies", "no": "  goal: nearly none lives"}.get(word, "")
        lines.append(f"{word:<22}{ended['lived']:>9}{ended['retried']:>9}{ended['died']:>9}{goal}")
    lines += [f"wrong: {name}" for name in found["wrong"]]
    lines += [f"failed: {name}: {why}" for name, why in found["failed"].items()]
    lines += [f"no estimate: {name}: {why}" for name, why in record["refused"].items()]
    if record["gpu"] is None:
        lines.append("on a CPU measured is the growth of the process: no goal holds for it")
    return "\n".join(lines)


def _told(run: Json) -> str:
    """One line on one run."""
    fits, measured = run["predicted"]["fits"], run["measured"]
    ended = f"died in {measured['died_in']}" if "died_in" in measured else measured.get("error", "lived")
    names = [n for n in ("peak_allocated_bytes", "peak_reserved_bytes") if n in measured]
    errors = "".join(f", {name.split('_')[1]} {_error(run, name):+.2%}" for name in names)
    return f"{_name(run)}: fits {fits}, {ended}{errors}"


def _name(run: Json) -> str:
    return str(run["case"]["id"]) + (f" under {run['cap_gib']:g} GiB" if run["cap_gib"] else "")


def _error(run: Json, name: str) -> float:
    return float(run["predicted"][name] / run["measured"][name] - 1)


def _in_range(run: Json) -> bool:
    expected = run["predicted"]["step_time_s"]
    return bool(expected["lower"] <= run["measured"]["step_time_s"] <= expected["upper"])


def _spread(errors: dict[str, float]) -> Json | None:
    """Median of the sizes, and the largest with its sign."""
    if not errors:
        return None
    worst = max(errors, key=lambda run: abs(errors[run]))
    return {
        "median": statistics.median(abs(error) for error in errors.values()),
        "worst": errors[worst],
        "worst_run": worst,
    }


if __name__ == "__main__":
    main()
