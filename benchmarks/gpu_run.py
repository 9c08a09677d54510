"""`autoft run` on this machine's GPU, kept to the memory of smaller cards: does it live, with what it was told to take?

    python benchmarks/gpu_run.py --data gsm8k/train.jsonl
    python benchmarks/gpu_run.py --smoke         the same on this CPU, without a cap, to see that it works

Everything that a run does: plan, load, rehearse, evaluate, train, save. The models have real shapes and random weights,
and the starter's tokenizer, so what they learn means nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import write_results
from gpu_validate import this_gpu
from shapes import add_tokenizer
from side_by_side import GIB, SideBySide, Weights

from autoft.planner.target import target_of
from autoft.profiles.detect import detect
from autoft.trainer import environment

Json = dict[str, Any]
WORKER = "--worker"
SETTINGS = {"max_steps": 8, "eval_rows": 16, "max_new_tokens": 16}


@dataclass(frozen=True, slots=True)
class Case:
    """A model's shape, its parameters, GiB of the card that is stood for, settings beside SETTINGS."""

    shape: str
    params: int
    cap_gib: float
    settings: tuple[str, ...] = ()


CASES = (
    Case("llama-3.2-1b", 1_235_814_400, 8),
    Case("qwen2.5-1.5b", 1_543_714_304, 12),
    Case("qwen3-4b", 4_022_468_096, 12),
    Case("llama-3.1-8b", 8_030_261_248, 12),
    Case("llama-3.1-8b", 8_030_261_248, 24),
    # far too large for its card, which its rehearsal has to find out
    Case("llama-3.2-1b", 1_235_814_400, 8, ("micro_batch=64", "accumulation=1", "gradient_checkpointing=false")),
)
SMOKE_CASES = (Case("tiny-smollm2", 8_000_000, 8, ("rank=8",)),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSONL with question and answer")
    parser.add_argument("--tokenizer", type=Path, help="folder of a model that has one; default: the starter")
    parser.add_argument("--jobs", type=int, default=1, help="at once, as far as the card has room for them")
    parser.add_argument("--weights", help="folder that keeps the random weights for a later call")
    parser.add_argument("--smoke", action="store_true")
    environment.prepare()
    if sys.argv[1:2] == [WORKER]:
        _capped(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    asked = parser.parse_args()
    gpu = None if asked.smoke else this_gpu()
    hardware = replace(detect(), gpus=(gpu,) if gpu else ())
    target = target_of(hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda: None)
    runs: list[Json] = []
    with tempfile.TemporaryDirectory() as temporary:
        weights = Weights(Path(asked.weights or temporary) / "weights")
        with SideBySide(asked.jobs, math.inf if gpu is None else gpu.total_bytes) as running:
            for number, case in enumerate(SMOKE_CASES if asked.smoke else CASES):
                model = weights.of(case.shape, case.params, running)
                add_tokenizer(model, asked.tokenizer or _starter())
                out = Path(temporary) / f"run{number}"
                card = int(case.cap_gib * GIB)
                caps = (card - target.device_bytes(0), card)
                running.start(card, case.shape, partial(_run, runs, case, model, asked.data, out, caps))
    figures = {"lived": all(run["code"] == 0 for run in runs), "runs": runs}
    print(json.dumps(figures)) if asked.smoke else write_results("gpu_run", figures)


def _starter() -> Path:
    from autoft.trainer.starter import starter_folder

    return starter_folder()


def _run(runs: list[Json], case: Case, model: Path, data: Path, out: Path, caps: tuple[int, int]) -> None:
    """Add to `runs` what became of the case. caps: bytes for PyTorch, and of the card that is stood for."""
    words = ["run", str(model), "--data", str(data), "-o", str(out)]
    words += [] if case.settings else ["--vram", f"{case.cap_gib:g}"]
    for setting in (*(f"{key}={value}" for key, value in SETTINGS.items()), *case.settings):
        words += ["--set", setting]
    command = [sys.executable, __file__, WORKER, *map(str, caps), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    run: Json = {**asdict(case), "code": done.returncode}
    if done.returncode == 0:
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        run |= {name: result[name] for name in ("predicted", "measured", "events", "seconds", "energy_kwh")}
        run["recipe"], run["accumulation"] = result["job"]["recipe"], result["job"]["accumulation"]
    else:
        run["said"] = (done.stderr + done.stdout)[-2000:]
    runs.append(run)
    print(f"{case.shape}, {case.cap_gib:g} GiB: exit {done.returncode}, {run.get('said', '')}", file=sys.stderr)


def _capped(cap_bytes: int, card_bytes: int, words: list[str]) -> None:
    """The command line in this process, on a GPU kept to `cap_bytes`. Does not return."""
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap_bytes / total)
        # what is free on the card that is stood for
        torch.cuda.mem_get_info = lambda device=None: (max(0, cap_bytes - torch.cuda.memory_reserved()), card_bytes)
    from autoft.cli.main import main as autoft

    autoft(words)


if __name__ == "__main__":
    main()
