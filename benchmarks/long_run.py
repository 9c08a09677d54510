"""A run of some length that is killed and taken up again: plan, train, kill -9, resume, evaluate, report.

    python benchmarks/long_run.py --data gsm8k/train.jsonl --eval-data gsm8k/test.jsonl --steps 200

The same run without the kill comes first, with --compare: both must end with the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_results

from autoft.home import sha256
from autoft.trainer.storage.run_folder import unfinished

AUTOFT = [sys.executable, "-m", "autoft"]
ADAPTER = "adapter_model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kill-at", type=int, help="the step after which it is killed; default: half of them")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="as of autoft run")
    parser.add_argument("--compare", action="store_true", help="run it undisturbed too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = _figures(asked, Path(folder))
    write_results("long_run", figures)


def _figures(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    words = ["run", asked.model, "--data", asked.data]
    words += ["--eval-data", asked.eval_data] if asked.eval_data else []
    for setting in [f"max_steps={asked.steps}", *asked.set]:
        words += ["--set", setting]
    undisturbed = None
    if asked.compare:
        subprocess.run([*AUTOFT, *words, "-o", str(folder / "whole")], check=True, stdout=subprocess.DEVNULL)
        undisturbed = sha256(folder / "whole" / ADAPTER)
    out = folder / "killed"
    began = time.perf_counter()
    killed_at = _run_and_kill([*AUTOFT, *words, "-o", str(out)], out, asked.kill_at or asked.steps // 2)
    kept = sorted(path.name for path in (unfinished(out) / "checkpoints").glob("step-*"))
    done = subprocess.run([*AUTOFT, "resume", str(out), "--json"], check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    result["base"] = os.path.basename(result["base"])  # noqa: PTH119 - a folder of this machine's cache
    result["job"] |= {name: Path(result["job"][name]).name for name in ("data", "eval_data") if result["job"][name]}
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "killed_after_step": killed_at,
        "checkpoints_then": kept,
        "resumed_from": next(event["step"] for event in result["events"] if event["event"] == "resumed"),
        "report_bytes": (out / "report.html").stat().st_size if (out / "report.html").is_file() else None,
        "same_weights_as_undisturbed": None if undisturbed is None else undisturbed == sha256(out / ADAPTER),
        "result": {name: value for name, value in result.items() if name not in ("output", "memory")},
    }


def _run_and_kill(command: list[str], out: Path, step: int) -> int:
    """Start it, and kill it once its record tells of `step`; the last step told of."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    record = unfinished(out) / "events.jsonl"
    while True:
        last = _last_step(record)
        if last >= step:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return last
        if process.poll() is not None:
            raise SystemExit(f"it ended by itself with {process.returncode} after step {last}")
        time.sleep(0.2)


def _last_step(record: Path) -> int:
    if not record.is_file():
        return 0
    steps = [
        json.loads(line)
        for line in record.read_text().splitlines()
        if line.startswith('{"event": "step"') and line.endswith("}")
    ]
    return int(steps[-1]["step"]) if steps else 0


if __name__ == "__main__":
    main()
