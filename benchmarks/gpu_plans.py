"""Plans for smaller cards, tried on this machine's GPU: the chosen candidate, and the two nearest that are too large.

    python benchmarks/gpu_plans.py               all of CASES, each under a cap that stands for its card
    python benchmarks/gpu_plans.py --jobs 6      so many plans, and then runs, at once
    python benchmarks/gpu_plans.py --smoke       the same on this CPU with tiny models, to see that it works

Each candidate gets a fresh process, random weights of the model's shape, and the trainer's own step (gpu_step.py). The
chosen one must live, the others must die: what would fit into the margin that plans keep free is none of them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from common import write_results
from gpu_validate import run_child, this_gpu
from shapes import write_config
from side_by_side import GIB, SideBySide, Weights

from autoft.planner.request import Request
from autoft.planner.search.candidates import describe
from autoft.planner.search.search import Candidate
from autoft.planner.what_if.context import Frame, make_frame
from autoft.profiles.detect import detect
from autoft.profiles.hardware import Hardware
from autoft.trainer.runtime import environment

Json = dict[str, Any]
REJECTS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A model's shape, tokens a row, GiB of the card that is stood for."""

    shape: str
    seq_len: int
    cap_gib: float


CASES = (
    Case("llama-3.2-1b", 2048, 8),
    Case("qwen2.5-1.5b", 2048, 8),
    Case("qwen3-4b", 2048, 12),
    Case("qwen2.5-7b", 1024, 12),
    Case("llama-3.2-3b", 2048, 16),
    Case("llama-3.1-8b", 2048, 16),
    Case("llama-3.1-8b", 4096, 24),
    Case("qwen3-8b", 1024, 24),
)
SMOKE_CASES = (Case("tiny-llama", 4096, 1.3),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="at once, as far as the card has room for them")
    parser.add_argument("--weights", help="folder that keeps the random weights for a later call")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    environment.prepare()
    gpu = None if asked.smoke else this_gpu()
    hardware = replace(detect(), gpus=(gpu,) if gpu else ())
    cases = SMOKE_CASES if asked.smoke else CASES
    with environment.hidden_gpus(), tempfile.TemporaryDirectory() as temporary:
        configs = Path(temporary) / "configs"
        apart = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(asked.jobs, apart, initializer=environment.prepare) as pool:
            each = pool.map if asked.jobs > 1 else map
            plans = list(each(planned, cases, repeat(hardware), repeat(configs)))
        weights = Weights(Path(asked.weights or temporary) / "weights")
        with SideBySide(asked.jobs, math.inf if gpu is None else gpu.total_bytes) as running:
            for plan in plans:
                for run in plan["runs"]:
                    at = weights.of(plan["shape"], run["predicted"]["total_params"], running)
                    running.start(run["card_bytes"], plan["shape"], partial(try_run, plan, run, at))
    figures = {"as_told": all(as_told(run) for plan in plans for run in plan["runs"]), "plans": plans}
    print(json.dumps(figures)) if asked.smoke else write_results("gpu_plans", figures)


def planned(case: Case, hardware: Hardware, configs: Path, rejects: int | None = None) -> Json:
    """The runs that the plan of a case asks for: its choice, and so many of the nearest that are too large."""
    folder = write_config(case.shape, configs / f"{case.shape}-{case.seq_len}-{case.cap_gib:g}")
    cpu = None if hardware.gpus else "cpu"
    request = Request(model=str(folder), gpu=cpu, vram_gib=case.cap_gib, seq_len=case.seq_len)
    if cpu:  # one that computes in bfloat16 needs less
        request = replace(request, settings=("base_dtype=float32",))
    frame = make_frame(request, hardware)
    found = frame.question.search()
    choice = frame.question.choose(found)
    if choice is None:
        sys.exit(f"{case}: nothing fits")
    beyond = [c for c in found.found.values() if c.estimate.device_bytes > case.cap_gib * GIB]
    nearest = sorted(beyond, key=lambda candidate: candidate.estimate.device_bytes)[: rejects or REJECTS]
    runs = [_run(candidate, frame, case) for candidate in (found.found[choice.recipe], *nearest)]
    return {"shape": case.shape, "seq_len": case.seq_len, "cap_gib": case.cap_gib, "runs": runs}


def _run(candidate: Candidate, frame: Frame, case: Case) -> Json:
    cap, target = int(case.cap_gib * GIB), frame.target
    return {
        "candidate": describe(candidate.recipe),
        "predicted": candidate.estimate.to_dict(),
        "recipe": candidate.recipe.to_dict(),
        "device": target.device,
        "gpu": target.gpu.uuid if target.gpu else None,
        "card_bytes": cap,
        "cap_bytes": cap - target.device_bytes(0),
        "accumulation": frame.question.replicas(candidate.recipe).accumulation,
    }


def try_run(plan: Json, run: Json, weights: Path) -> None:
    """What becomes of the run is added to it."""
    run["measured"] = measured = run_child({**run, "weights": str(weights), "alone": False})
    became = f"died in {measured['died_in']}" if "died_in" in measured else measured.get("error", "lived")
    told = f"{run['candidate']}: fits {run['predicted']['fits']}, {became}"
    print(f"{plan['shape']}, {plan['cap_gib']:g} GiB: {told}", file=sys.stderr, flush=True)


def as_told(run: Json) -> bool:
    """Whether it lived where it was told to fit, and died where it was not."""
    measured = run["measured"]
    return "error" not in measured and ("died_in" in measured) == (run["predicted"]["fits"] == "no")


if __name__ == "__main__":
    main()
