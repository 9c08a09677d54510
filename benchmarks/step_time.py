"""Is a step as quick as predicted? Real steps on this CPU, each case in a process of its own, against their ranges.

    python benchmarks/step_time.py [--shared] [--bench]

Models have real shapes and random weights. A step is forward, backward, clipping and the optimizer, as the trainer's.
--shared, on a machine that others use: one thread, and seconds of processor time. Threads that wait for each other on
cores that others hold make the wall clock vary tenfold.
--bench: predicted from one bench (autoft probe --bench) for all cases, instead of what planning itself measures beside
each; written to step_time_bench.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import write_results

from autoft.trainer.runtime import environment

environment.prepare()

STEPS = 5
TINY = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 8192}  # fmt: skip
SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
QLORA = {"method": "qlora", "quant_type": "nf4", "double_quant": True}
HALF = {"autocast": True}
SINGLE = {"base_dtype": "float32"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "tiny llama, lora float32": ("llama", TINY, {**SINGLE, "loss": "selected", "micro_batch": 1, "seq_len": 64}),
    "tiny llama, lora bfloat16, fused": ("llama", TINY, {**HALF, "loss": "fused", "micro_batch": 4, "seq_len": 256}),
    "tiny llama, qlora, 8-bit adam": (
        "llama", TINY,
        {**HALF, **QLORA, "loss": "selected", "micro_batch": 2, "seq_len": 256, "optimizer": "adamw_8bit"},
    ),
    "small qwen2, lora float32, checkpointing": (
        "qwen2", SMALL, {**SINGLE, "loss": "selected", "micro_batch": 2, "seq_len": 256, "gradient_checkpointing": True}
    ),
    "small qwen2, qlora, checkpointing": (
        "qwen2", SMALL,
        {**HALF, **QLORA, "loss": "selected", "micro_batch": 2, "seq_len": 256, "gradient_checkpointing": True},
    ),
    "small gpt_neox, lora bfloat16, logits": (
        "gpt_neox", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"},
        {**HALF, "loss": "logits", "micro_batch": 1, "seq_len": 512},
    ),
    "small llama, lora bfloat16, eager attention": (
        "llama", SMALL, {**HALF, "loss": "selected", "micro_batch": 1, "seq_len": 1024, "attention": "eager"}
    ),
    "smollm2-135m, lora float32": (
        "llama", SMOLLM2_135M, {**SINGLE, "loss": "selected", "micro_batch": 1, "seq_len": 256}
    ),
    "smollm2-135m, lora bfloat16": (
        "llama", SMOLLM2_135M, {**HALF, "loss": "selected", "micro_batch": 4, "seq_len": 128}
    ),
    "smollm2-135m, lora bfloat16, fused, checkpointing": (
        "llama", SMOLLM2_135M,
        {**HALF, "loss": "fused", "micro_batch": 1, "seq_len": 512, "gradient_checkpointing": True},
    ),
    "smollm2-135m, qlora": (
        "llama", SMOLLM2_135M, {**HALF, **QLORA, "loss": "selected", "micro_batch": 2, "seq_len": 256}
    ),
    "smollm2-135m, qlora, checkpointing, rank 64": (
        "llama", SMOLLM2_135M,
        {**HALF, **QLORA, "loss": "selected", "micro_batch": 1, "seq_len": 512, "gradient_checkpointing": True,
         "rank": 64},
    ),
}  # fmt: skip


BENCH_S = 40.0


def main(shared: bool, bench: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        if bench:
            way = ["--measure-bench", str(file), *(["--shared"] if shared else [])]
            subprocess.run([sys.executable, __file__, *way], check=True)
        compare_all(shared, file if bench else None)


def compare_all(shared: bool, bench: Path | None) -> None:
    found = []
    for name in CASES:
        load = os.getloadavg()[0]
        command = [sys.executable, __file__, "--case", name, *(["--shared"] if shared else [])]
        command += ["--with-bench", str(bench)] if bench else []
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append({"case": name, "load_before": round(load, 2), **json.loads(result.stdout.splitlines()[-1])})
        print(found[-1], file=sys.stderr, flush=True)
    write_results(
        "step_time_bench" if bench else "step_time",
        {
            "steps": STEPS,
            "clock": "processor time of one thread, others at work" if shared else "wall, all cores",
            "inside": f"{sum(case['inside'] for case in found)} of {len(found)}",
            "widest_upper_to_lower": max(case["upper_to_lower"] for case in found),
            "cases": found,
        },
    )


def measure_bench(file: Path, shared: bool) -> None:
    """A bench of this CPU, with the clock that its steps are timed by."""
    import torch

    from autoft.planner.timing.microbench import readings

    if shared:
        torch.set_num_threads(1)
    clock = time.process_time if shared else time.perf_counter
    found = [each for each in readings("cpu", BENCH_S, clock) if not isinstance(each, str)]
    file.write_text(json.dumps([each.to_dict() for each in found]))


def read_bench(file: Path) -> Any:
    """The Bench of what measure_bench has written."""
    from autoft.profiles.bench_store import Bench, Reading, cpu_key
    from autoft.profiles.detect import detect

    data = json.loads(file.read_text())
    readings = tuple(Reading(**{**each, "shape": tuple(each["shape"])}) for each in data)
    return Bench(key=cpu_key(detect().host), date="2000-01-01", readings=readings)


def compare(name: str, shared: bool, bench: Path | None) -> dict[str, Any]:
    """One case, measured and predicted."""
    import torch
    import transformers

    from autoft.planner.estimator.estimate_recipe import Estimator
    from autoft.planner.estimator.model_shape import model_shape
    from autoft.planner.estimator.target import target_of
    from autoft.planner.timing.roofline import measure_cpu_bandwidth, measure_cpu_flops
    from autoft.profiles.detect import detect
    from autoft.trainer.model.build import build_base
    from autoft.trainer.recipe import Recipe

    if shared:
        torch.set_num_threads(1)
    family, shape, settings = CASES[name]
    recipe = Recipe.from_dict(settings)
    config = transformers.AutoConfig.for_model(family, **shape)
    clock = time.process_time if shared else time.perf_counter
    width = model_shape(name, config, build_base(Recipe(attention=recipe.attention), config))

    def rates() -> list[float]:
        flops = [measure_cpu_flops(dtype, width, clock=clock) for dtype in (recipe.base_dtype, "float32")]
        return [*flops, *measure_cpu_bandwidth(clock=clock)]

    before, seconds, after = rates(), measured_steps(config, recipe, clock), rates()
    half, single, in_pieces, at_once = map(max, before, after)  # others may have been in the way of one
    flops = {"float32": single, recipe.base_dtype: half}
    target = dataclasses.replace(
        target_of(detect(), gpu_name="cpu", vram_gib=None, cpu_flops_per_s=lambda dtype, _: flops[dtype]),
        cpu_bytes_per_s=lambda: (in_pieces, at_once),
        bench=read_bench(bench) if bench else None,
    )
    predicted = Estimator(name, config, target).estimate(recipe).step_time_s
    median = statistics.median(seconds)
    return {
        "measured_s": round(median, 4),
        "slowest_to_quickest": round(max(seconds) / min(seconds), 2),
        "predicted_lower_s": round(predicted.lower, 4),
        "predicted_upper_s": round(predicted.upper, 4),
        "upper_to_lower": round(predicted.upper / predicted.lower, 2),
        "inside": predicted.lower <= median <= predicted.upper,
    }


def measured_steps(config: Any, recipe: Any, clock: Callable[[], float]) -> list[float]:
    """Seconds of each of STEPS steps, after one to warm up."""
    step = prepared_step(config, recipe, "cpu")
    seconds = []
    for _ in range(STEPS + 1):
        began = clock()
        step()
        seconds.append(clock() - began)
    return seconds[1:]


def prepared_step(config: Any, recipe: Any, device: str) -> Callable[[], None]:
    """A step of a model with random weights."""
    import torch
    import transformers

    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives import objective_of
    from autoft.trainer.optimizers.optim import build_optimizer

    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        model = build_model(recipe, config=config, weights=Path(folder), device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(trained, recipe, learning_rate=1e-4)
    ids = torch.randint(config.vocab_size, (recipe.micro_batch, recipe.seq_len), device=device)
    objective = objective_of(recipe)
    batch = objective.dummy_batch(recipe, ids)

    def step() -> None:
        objective.loss(model, batch, recipe).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--bench", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--measure-bench", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--with-bench", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(compare(options.case, options.shared, options.with_bench)))
    elif options.measure_bench:
        measure_bench(options.measure_bench, options.shared)
    else:
        main(options.shared, options.bench)
