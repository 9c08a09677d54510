"""Our trainer beside TRL's SFTTrainer called directly, in turns on one machine.

    python benchmarks/trainer_speed.py --data gsm8k/train.jsonl

same: TRL with the settings of our run; the bar is a step at most 3 % slower than TRL's. plan: what `autoft plan`
chooses for the data, against TRL's defaults with an adapter of the same rank; the bar is twice the trained tokens a
second. Each run is a process of its own; a pair is one of each, and the ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_results

BAR = {"same_step_time": 1.03, "plan_trained_tokens_per_s": 2.0}
WARM_UP = 1  # steps that are not counted
# The settings of "same": what both can do, with nothing that one of them lacks
SAME = {"micro_batch": 4, "accumulation": 2, "group_by_length": False, "rank": 16, "alpha": 32.0, "learning_rate": 2e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--data", type=Path, help="JSONL with question and answer; default: generated sums")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        _with_trl(asked.worker[0], Path(asked.worker[1]), asked.model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_rows(asked.data, asked.rows, folder / "rows.jsonl")
        figures = {
            "data": asked.data.name if asked.data else "generated",
            "rows": asked.rows,
            "bar": BAR,
            "same": _compared(folder, asked, "same", "step_time_s"),
            "plan": _compared(folder, asked, "plan", "trained_tokens_per_s"),
        }
    same, plan = figures["same"]["ratio"], figures["plan"]["ratio"]
    met = same <= BAR["same_step_time"] and plan >= BAR["plan_trained_tokens_per_s"]
    write_results("trainer_speed", {**figures, "bar_met": met})


def _compared(folder: Path, asked: argparse.Namespace, kind: str, figure: str) -> dict[str, Any]:
    """ratio: ours by TRL's of `figure`, the median of the pairs."""
    pairs = []
    for turn in range(asked.pairs):
        both = [("autoft", lambda: _ours(folder, asked.model, kind)), ("trl", lambda: _trl(folder, asked.model, kind))]
        pairs.append({name: go() for name, go in (both if turn % 2 == 0 else reversed(both))})
        print(kind, json.dumps(pairs[-1]), flush=True)
    ratios = [pair["autoft"][figure] / pair["trl"][figure] for pair in pairs]
    return {"figure": figure, "ratio": round(statistics.median(ratios), 3), "ratios": ratios, "pairs": pairs}


def _ours(folder: Path, model: str, kind: str) -> dict[str, Any]:
    """`autoft run`, its steps as its own record has them."""
    out = folder / f"ours-{time.monotonic_ns()}"
    settings = {"max_new_tokens": 0, "eval_rows": 0, "warmup_ratio": 0.0, "epochs": 1.0}
    if kind == "same":
        settings |= {**SAME, "base_dtype": "float32", "gradient_checkpointing": False, "method": "lora"}
    words = [sys.executable, "-m", "autoft", "run", model, "--data", str(folder / "rows.jsonl"), "-o", str(out)]
    for key, value in settings.items():
        words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    times = [step["step_s"] for step in steps if step["event"] == "step"]
    trained = [step["step_trained_tokens"] for step in steps if step["event"] == "step"]
    recipe = json.loads((out / "result.json").read_text())["job"]["recipe"]
    return {
        **_figures(times, trained),
        "recipe": {name: recipe[name] for name in ("base_dtype", "micro_batch", "loss")},
    }


def _trl(folder: Path, model: str, kind: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--model", model, "--worker", kind, str(folder)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _figures(times: list[float], trained: list[int]) -> dict[str, Any]:
    """Of the steps after the warm-up."""
    times, trained = times[WARM_UP:], trained[WARM_UP:]
    return {
        "steps": len(times),
        "step_time_s": statistics.median(times),
        "trained_tokens_per_s": sum(trained) / sum(times),
    }


def _with_trl(kind: str, folder: Path, model: str) -> None:
    """TRL as its documentation shows it. Prints the figures as JSON."""
    from autoft.trainer import environment

    environment.prepare()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from autoft.trainer.resolve import fetch, resolve

    weights = fetch(resolve(model))
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in rows
        ]
    )
    times: list[float] = []
    counts: list[int] = [0]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.began)
            counts.append(0)

    class Counting(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            counts[-1] += int((inputs["labels"][:, 1:] != -100).sum())
            return super().training_step(model, inputs, *args, **kwargs)

    settings: dict[str, Any] = {"output_dir": str(folder / "trl"), "report_to": "none", "save_strategy": "no"}
    settings["use_cpu"] = not torch.cuda.is_available()  # TRL's default bf16 is refused on a CPU without it
    if kind == "same":
        settings |= {
            "per_device_train_batch_size": SAME["micro_batch"],
            "gradient_accumulation_steps": SAME["accumulation"],
            "learning_rate": SAME["learning_rate"],
            "num_train_epochs": 1,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_length": None,
            "pad_to_multiple_of": 16,
            "lr_scheduler_type": "cosine",
        }
        model_given: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    else:
        model_given = str(weights)  # its own way of loading
        settings |= {"num_train_epochs": 1}
    trainer = Counting(
        model=model_given,
        args=SFTConfig(**settings),
        processing_class=AutoTokenizer.from_pretrained(weights),
        train_dataset=data,
        peft_config=LoraConfig(r=SAME["rank"], lora_alpha=SAME["alpha"], target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    print(json.dumps(_figures(times, counts[: len(times)])))


def _write_rows(data: Path | None, count: int, path: Path) -> None:
    """Every so many-th row of the data, so that lengths are as they are there."""
    if data is None:
        rows = [
            {"question": f"What is {n} times {n + 3}? " * (1 + n % 5), "answer": f"It is {n * (n + 3)}. " * (2 + n % 7)}
            for n in range(count)
        ]
    else:
        lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        rows = lines[:: max(1, len(lines) // count)][:count]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
