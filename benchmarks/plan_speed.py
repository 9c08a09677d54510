"""How long does `autoft plan` take for an 8B model and 10,000 rows, beside bare imports and the reading of the data?

    python benchmarks/plan_speed.py [--runs 5]

Whole processes in turn, so that a busy machine slows all alike; medians. A cold plan has a cache folder of its own each
time; "asked again" has the folder of the plan just before. The model is a folder with an 8B configuration and the
starter's tokenizer, the data 10,000 rows of the bundled task's form. Reading is what the plan's own reader takes in a
process that has imported all that it needs.

The bar of a cold plan is 1.5 x the imports, plus the reading. Both ratios to it are written: of all that the plan takes
besides the reading to the imports, which is the bar's own, and of the plan to imports and reading together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_results
from shapes import write_config

from autoft.trainer.data.support_desk import generate
from autoft.trainer.sources.starter import starter_folder

ROWS = 10_000
IMPORTS = "import torch, transformers, peft"
READ = """
import sys, time
import torch, transformers, peft
from autoft.trainer.data.prepare import prepare
from autoft.trainer.sources.resolve import resolve
began = time.perf_counter()
prepare(resolve(sys.argv[1]), sys.argv[2])
print(time.perf_counter() - began)
"""
COLD_BAR, AGAIN_BAR_S = 1.5, 1.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    found: dict[str, list[float]] = {"imports": [], "reading": [], "cold": [], "again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = _model(folder / "model"), _data(folder / "data.jsonl")
        plan = [sys.executable, "-m", "autoft", "plan", str(model), "--data", str(data), "--gpu", "rtx-4090", "--json"]
        for _ in range(runs):
            home = tempfile.mkdtemp(dir=folder)
            found["imports"].append(_seconds([sys.executable, "-c", IMPORTS], home))
            found["reading"].append(float(_run([sys.executable, "-c", READ, str(model), str(data)], home)))
            found["cold"].append(_seconds(plan, home))
            found["again"].append(_seconds(plan, home))
    median = {what: statistics.median(times) for what, times in found.items()}
    # of each round by itself: how busy the machine is changes from one to the next
    rounds = list(zip(found["cold"], found["reading"], found["imports"], strict=True))
    over_imports = statistics.median((cold - reading) / imports for cold, reading, imports in rounds)
    over_both = statistics.median(cold / (imports + reading) for cold, reading, imports in rounds)
    print(f"cold plan {median['cold']:.2f} s, imports {median['imports']:.2f} s, reading {median['reading']:.2f} s")
    print(f"(cold - reading) / imports {over_imports:.2f}, bar {COLD_BAR}: {_verdict(over_imports <= COLD_BAR)}")
    print(f"cold / (imports + reading) {over_both:.2f}, bar {COLD_BAR}: {_verdict(over_both <= COLD_BAR)}")
    print(f"asked again {median['again']:.2f} s, bar {AGAIN_BAR_S} s: {_verdict(median['again'] <= AGAIN_BAR_S)}")
    write_results(
        "plan_speed",
        {
            "runs": runs,
            "rows": ROWS,
            "median_s": {what: round(value, 2) for what, value in median.items()},
            "all_s": {what: [round(value, 2) for value in times] for what, times in found.items()},
            "cold_less_reading_over_imports": round(over_imports, 2),
            "cold_over_imports_and_reading": round(over_both, 2),
            "bars": {"cold_less_reading_over_imports": COLD_BAR, "again_s": AGAIN_BAR_S},
            "holds": over_imports <= COLD_BAR and median["again"] <= AGAIN_BAR_S,
            "load_average": os.getloadavg(),  # above the number of cores others were at work too
        },
    )


def _verdict(held: bool) -> str:
    return "holds" if held else "MISSED"


def _model(folder: Path) -> Path:
    write_config("llama-3.1-8b", folder)
    for file in starter_folder(print).iterdir():
        if "token" in file.name or "template" in file.name or file.name in ("vocab.json", "merges.txt"):
            shutil.copy(file, folder / file.name)
    return folder


def _data(path: Path) -> Path:
    rows, _ = generate(train_rows=ROWS)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _seconds(words: list[str], home: str) -> float:
    began = time.perf_counter()
    _run(words, home)
    return time.perf_counter() - began


def _run(words: list[str], home: str) -> str:
    env = {**os.environ, "AUTOFT_HOME": home, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
