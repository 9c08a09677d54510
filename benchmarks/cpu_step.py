"""Which loss and which dtype make a training step quickest on this CPU? Measured in turn in one process.

    python benchmarks/cpu_step.py

The starter model on rows of the bundled task, four a batch; tokens a second from medians of the step times.
"""

from __future__ import annotations

import statistics
import time

from common import write_results

from autoft.trainer.runtime import environment

environment.prepare()

RUNS = 5
ROWS = 4
RECIPES = {
    f"{dtype}, {loss}": {"base_dtype": dtype, "autocast": dtype != "float32", "loss": loss}
    for dtype in ("float32", "bfloat16")
    for loss in ("fused", "logits", "selected")
}


def main() -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from autoft.trainer.data.prepare import prepare
    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives.loss import compute_loss
    from autoft.trainer.recipe import Recipe
    from autoft.trainer.sources.resolve import fetch, load_config, resolve

    ref = resolve("starter")
    weights, config, data = fetch(ref, print), load_config(ref), prepare(ref, "starter")
    collate = DataCollatorForLanguageModeling(data.tokenizer.pad_token_id, pad_to_multiple_of=Recipe().pad_multiple)
    examples = data.train.examples[:ROWS]
    batch = collate([{"input_ids": e.input_ids, "labels": e.labels} for e in examples])
    tokens = sum(len(e.input_ids) for e in examples)
    recipes = {name: Recipe(micro_batch=ROWS, **settings) for name, settings in RECIPES.items()}
    models = {
        name: build_model(recipe, config=config, weights=weights, device="cpu") for name, recipe in recipes.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for run in range(RUNS + 1):
        for name, recipe in recipes.items():
            began = time.perf_counter()
            compute_loss(models[name], dict(batch), recipe).backward()
            if run:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    speeds = {name: round(tokens / statistics.median(times), 1) for name, times in seconds.items()}
    slowest = min(speeds.values())
    write_results(
        "cpu_step",
        {
            "runs": RUNS,
            "tokens": tokens,
            "tokens_per_s": speeds,
            "ratio_to_slowest": {name: round(speed / slowest, 2) for name, speed in speeds.items()},
        },
    )


if __name__ == "__main__":
    main()
