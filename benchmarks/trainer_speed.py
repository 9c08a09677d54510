"""Our trainer beside TRL's SFTTrainer called directly, in turns on one machine.

    python benchmarks/trainer_speed.py --data gsm8k/train.jsonl
    python benchmarks/trainer_speed.py --data gsm8k/train.jsonl --shape llama-3.1-8b --method qlora     on a GPU

With a shape the model has random weights of it, and a token for each byte.
same: TRL with the settings of our run; the bar is a step at most 3 % slower than TRL's. plan: what `autoft plan`
chooses for the data, against TRL's defaults with an adapter of the same rank; the bar is twice the trained tokens a
second. Each run is a process of its own; a pair is one of each, and the ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from child import work_and_leave
from common import write_results, write_rows
from shapes import add_tokenizer, write_weights

from autoft.profiles.detect import detect

BAR = {"same_step_time": 1.03, "plan_trained_tokens_per_s": 2.0}
FIGURES = {"same": "step_time_s", "plan": "trained_tokens_per_s"}
WARM_UP = 1  # steps that are not counted
# The settings of "same": what both can do, with nothing that one of them lacks
SAME = {"micro_batch": 4, "accumulation": 2, "group_by_length": False, "rank": 16, "alpha": 32.0, "learning_rate": 2e-4}


@dataclass(frozen=True, slots=True)
class Setup:
    """The method, the dtype of the base, whether layers are checkpointed. model: a folder or `starter`."""

    model: str
    method: str
    dtype: str
    checkpointing: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--shape", help="instead of a model: one of benchmarks/shapes.py")
    parser.add_argument("--tokenizer", type=Path, help="with --shape: folder of a model that has one")
    parser.add_argument("--weights", help="with --shape: folder that keeps the random weights for a later call")
    parser.add_argument("--method", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--kinds", default="same,plan")
    parser.add_argument("--data", type=Path, help="JSONL with question and answer; default: generated sums")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "FOLDER", "SETUP"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        kind, folder, setup = asked.worker
        work_and_leave(partial(_with_trl, kind, Path(folder), Setup(**json.loads(setup))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.shape:
            weights = write_weights(asked.shape, Path(asked.weights or name) / "weights" / asked.shape)
            asked.model = str(add_tokenizer(weights, asked.tokenizer))
        setup = Setup(asked.model, asked.method, dtype_here(), asked.checkpointing)
        write_rows(asked.data, asked.rows, folder / "rows.jsonl")
        figures = {
            "model": asked.shape or asked.model,
            "method": asked.method,
            "checkpointing": asked.checkpointing,
            "data": asked.data.name if asked.data else "generated",
            "rows": asked.rows,
            "bar": BAR,
            **{kind: compared(folder, asked.pairs, kind, setup) for kind in asked.kinds.split(",")},
        }
    ratios = {kind: figures[kind]["ratio"] for kind in FIGURES if kind in figures}
    met = ratios.get("same", 0) <= BAR["same_step_time"]
    met &= ratios.get("plan", math.inf) >= BAR["plan_trained_tokens_per_s"]
    suffix = f"-{asked.shape}-{asked.method}" if asked.shape else ""
    write_results(f"trainer_speed{suffix}", {**figures, "bar_met": met})


def dtype_here() -> str:
    """Of the base, where both train: the 16 bits that the GPU computes in."""
    gpus = detect().gpus
    return ("bfloat16" if gpus[0].bf16 else "float16") if gpus else "float32"


def compared(folder: Path, count: int, kind: str, setup: Setup) -> dict[str, Any]:
    """ratio: ours by TRL's of the kind's figure, the median of the pairs. folder: has rows.jsonl.

    Raises: RuntimeError where one of the two does not train.
    """
    pairs, figure = [], FIGURES[kind]
    for turn in range(count):
        both = [("autoft", lambda: _ours(folder, kind, setup)), ("trl", lambda: _trl(folder, kind, setup))]
        pairs.append({name: go() for name, go in (both if turn % 2 == 0 else reversed(both))})
        print(kind, json.dumps(pairs[-1]), file=sys.stderr, flush=True)
    ratios = [pair["autoft"][figure] / pair["trl"][figure] for pair in pairs]
    return {"figure": figure, "ratio": round(statistics.median(ratios), 3), "ratios": ratios, "pairs": pairs}


def _ours(folder: Path, kind: str, setup: Setup) -> dict[str, Any]:
    """`autoft run`, its steps as its own record has them."""
    out = folder / f"ours-{time.monotonic_ns()}"
    settings = {"max_new_tokens": 0, "eval_rows": 0, "warmup_ratio": 0.0, "epochs": 1.0}
    if kind == "same":
        settings |= {**SAME, "base_dtype": setup.dtype, "gradient_checkpointing": setup.checkpointing}
        settings |= {"method": setup.method}
    words = [sys.executable, "-m", "autoft", "run", setup.model, "--data", str(folder / "rows.jsonl"), "-o", str(out)]
    for key, value in settings.items():
        words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    _said(words)
    steps = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    times = [step["step_s"] for step in steps if step["event"] == "step"]
    trained = [step["step_trained_tokens"] for step in steps if step["event"] == "step"]
    result = json.loads((out / "result.json").read_text())
    recipe = result["job"]["recipe"]
    return {
        **_figures(times, trained),
        "recipe": {
            name: recipe[name] for name in ("method", "base_dtype", "micro_batch", "loss", "gradient_checkpointing")
        },
        "peak_bytes": result["measured"]["peak_bytes"],
        "predicted_peak_bytes": result["predicted"]["peak_bytes"],
        "predicted_step_time_s": [result["predicted"][f"step_time_{end}_s"] for end in ("lower", "upper")],
    }


def _trl(folder: Path, kind: str, setup: Setup) -> dict[str, Any]:
    words = [sys.executable, __file__, "--worker", kind, str(folder), json.dumps(asdict(setup))]
    found: dict[str, Any] = json.loads(_said(words).splitlines()[-1])
    return found


def _said(words: list[str]) -> str:
    """What a command writes to stdout. Raises: RuntimeError where it fails."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[1:3]}: exit {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _figures(times: list[float], trained: list[int]) -> dict[str, Any]:
    """Of the steps after the warm-up."""
    times, trained = times[WARM_UP:], trained[WARM_UP:]
    return {
        "steps": len(times),
        "step_time_s": statistics.median(times),
        "trained_tokens_per_s": sum(trained) / sum(times),
    }


def _with_trl(kind: str, folder: Path, setup: Setup) -> None:
    """TRL as its documentation shows it. Prints the figures as JSON."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from autoft.trainer.sources.resolve import fetch, resolve

    weights = fetch(resolve(setup.model))
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
    model_given: Any
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
            "bf16": setup.dtype == "bfloat16",
            "fp16": setup.dtype == "float16",
            "gradient_checkpointing": setup.checkpointing,
            "max_length": None,
            "pad_to_multiple_of": 16,
            "lr_scheduler_type": "cosine",
        }
        model_given = _base(weights, setup)
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


def _base(weights: Path, setup: Setup) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, setup.dtype)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        weights, dtype=dtype, quantization_config=four_bit if setup.method == "qlora" else None
    )


if __name__ == "__main__":
    main()
