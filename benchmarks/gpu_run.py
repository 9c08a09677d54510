"""`autoft run` on this machine's GPU, kept to the memory of smaller cards: does it live, with what it was told to take?

    python benchmarks/gpu_run.py
    python benchmarks/gpu_run.py --data gsm8k/train.jsonl --tokenizer FOLDER     rows of a length that is met in life
    python benchmarks/gpu_run.py --smoke         the same on this CPU, without a cap, to see that it works

Everything that a run does: plan, load, rehearse, evaluate, train, save. The models have real shapes and random weights,
and a token for each byte, so what they learn means nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from child import records, work_and_leave
from common import write_results, write_rows
from gpu_validate import this_gpu
from shapes import add_tokenizer
from side_by_side import GIB, SideBySide, Weights

from autoft.planner.estimator.target import target_of
from autoft.profiles.detect import detect
from autoft.trainer.runtime import environment

Json = dict[str, Any]
WORKER = "--worker"
SETTINGS = {"max_steps": 8, "eval_rows": 16, "max_new_tokens": 16}
ROWS = 256
SHARE = 0.7  # of what a step takes, when memory shrinks


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
    parser.add_argument("--data", type=Path, help="JSONL with question and answer; default: generated sums")
    parser.add_argument("--tokenizer", type=Path, help="folder of a model that has one; default: a token for each byte")
    parser.add_argument("--jobs", type=int, default=1, help="at once, as far as the card has room for them")
    parser.add_argument("--weights", help="folder that keeps the random weights for a later call")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    environment.prepare()
    gpu = None if options.smoke else this_gpu()
    hardware = replace(detect(), gpus=(gpu,) if gpu else ())
    target = target_of(hardware, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda: None)
    runs: list[Json] = []

    def add(case: Case, model: Path, data: Path, out: Path, caps: tuple[int, int] | None) -> None:
        run = run_case(case, model, data, out, caps)
        runs.append(run)
        print(f"{case.shape}, {case.cap_gib:g} GiB: exit {run['code']}, {run.get('error', '')}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary:
        data = write_rows(options.data, ROWS, Path(temporary) / "rows.jsonl")
        weights = Weights(Path(options.weights or temporary) / "weights")
        with SideBySide(options.jobs, math.inf if gpu is None else gpu.total_bytes) as running:
            for number, case in enumerate(SMOKE_CASES if options.smoke else CASES):
                model = add_tokenizer(weights.of(case.shape, case.params, running), options.tokenizer)
                out = Path(temporary) / f"run{number}"
                card = int(case.cap_gib * GIB)
                caps = (card - target.device_bytes(0), card)
                running.start(card, case.shape, partial(add, case, model, data, out, caps))
    figures = {"lived": all(run["code"] == 0 for run in runs), "runs": runs}
    print(json.dumps(figures)) if options.smoke else write_results("gpu_run", figures)


def run_case(case: Case, model: Path, data: Path, out: Path, caps: tuple[int, int] | None) -> Json:
    """What became of `autoft run`. caps: bytes for PyTorch, and of the card that is stood for; None is no cap."""
    words = ["run", str(model), "--data", str(data), "-o", str(out)]
    words += [] if case.settings else ["--vram", f"{case.cap_gib:g}"]
    for setting in (*(f"{key}={value}" for key, value in SETTINGS.items()), *case.settings):
        words += ["--set", setting]
    done = subprocess.run(
        _command(words, caps=caps), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return {**asdict(case), "code": done.returncode, **_outcome(out, done.returncode, done.stderr + done.stdout)}


def killed_and_resumed(model: Path, data: Path, out: Path, settings: Json, *, shrink_after: int) -> Json:
    """A run that is killed without warning once it has a checkpoint, and resumed; then its memory shrinks in a step.

    settings: with save_steps, for the checkpoint, and more steps than shrink_after. On a CPU memory does not shrink.
    """
    from autoft.trainer.storage.event_log import EVENTS
    from autoft.trainer.storage.ownership import CHECKPOINTS
    from autoft.trainer.storage.run_folder import unfinished

    words = ["run", str(model), "--data", str(data), "-o", str(out)]
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    log, began = out.with_name(out.name + ".log"), time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(_command(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        events = unfinished(out) / EVENTS
        while child.poll() is None and _last_step(events) <= settings["save_steps"]:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
    run: Json = {"killed_after_step": _last_step(events), "code_of_killed": child.returncode}
    if child.returncode != -signal.SIGKILL or not any((unfinished(out) / CHECKPOINTS).iterdir()):
        return {**run, "error": f"it ended before it could be killed: {log.read_text()[-500:]}"}
    run["seconds_to_kill"] = time.monotonic() - began
    command = _command(["resume", str(out)], shrink_after=shrink_after)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return {**run, "code": done.returncode, **_outcome(out, done.returncode, done.stderr + done.stdout)}


def _outcome(out: Path, code: int, printed: str) -> Json:
    """What result.json of a finished run tells, or the end of what a failed one has printed."""
    if code:
        return {"error": printed[-2000:]}
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    recipe, accumulation = result["job"]["recipe"], result["job"]["accumulation"]
    told = {name: result[name] for name in ("steps", "predicted", "measured", "events", "seconds", "energy_kwh")}
    return {**told, "recipe": recipe, "accumulation": accumulation}


def _last_step(events: Path) -> int:
    """The last step that a run has recorded; 0 before the first."""
    try:
        lines = records(events.read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0
    return max((line["step"] for line in lines if line.get("event") == "step"), default=0)


def _command(words: list[str], *, caps: tuple[int, int] | None = None, shrink_after: int | None = None) -> list[str]:
    return [sys.executable, __file__, WORKER, json.dumps({"words": words, "caps": caps, "shrink_after": shrink_after})]


def _worker(request: Json) -> None:
    """The command line in this process. Its GPU is kept to the caps once the run is planned: planning touches none."""
    from autoft import training
    from autoft.cli.main import main as autoft

    take_devices = training.take_devices

    def take_and_cap(plan: Any) -> list[str]:
        taken: list[str] = take_devices(plan)
        if plan.job.device == "cuda" and request["caps"] is not None:
            _cap(*request["caps"])
        return taken

    training.take_devices = take_and_cap
    if request["shrink_after"] is not None:
        _shrink_after(request["shrink_after"])
    autoft(request["words"])


def _cap(cap_bytes: int, card_bytes: int) -> None:
    import torch

    _keep_to(cap_bytes)
    # what is free on the card that is stood for
    torch.cuda.mem_get_info = lambda device=None: (max(0, cap_bytes - torch.cuda.memory_reserved()), card_bytes)


def _keep_to(cap_bytes: int) -> None:
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total))


def _shrink_after(step: int) -> None:
    """After this step the GPU has no room for another one like it: room for SHARE of what a step takes."""
    import torch

    from autoft.trainer.loop.callbacks import Watch

    on_step_end = Watch.on_step_end

    def and_shrink(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        on_step_end(self, args, state, control, **rest)
        if state.global_step == step and self.memory.device == "cuda":
            held, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
            _keep_to(int(held + SHARE * (peak - held)))

    Watch.on_step_end = and_shrink


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        environment.prepare()
        work_and_leave(partial(_worker, json.loads(sys.argv[2])))
    main()
