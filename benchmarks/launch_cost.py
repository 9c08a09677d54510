"""What does a kernel cost the host? Real steps on a device that takes no time, in processor time of each launch.

    python tests/standin/standin.py --card t4 -- python benchmarks/launch_cost.py

The trainer's own step on a real shape, under the stand-in for CUDA: all that takes time is Python, PyTorch's CUDA
build, PEFT and bitsandbytes. Launches are those that the planner counts. A driver's own time is left out.
"""

from __future__ import annotations

import time
from typing import Any

from common import write_results
from step_time import SMOLLM2_135M, prepared_step

from autoft.trainer.runtime import environment

environment.prepare()

LORA = {
    "base_dtype": "float16",
    "autocast": True,
    "loss": "logits",
    "micro_batch": 2,
    "seq_len": 256,
    "attention": "eager",
}
QLORA = {**LORA, "method": "qlora", "quant_type": "nf4"}
CASES = {
    "lora": LORA,
    "lora, checkpointing": {**LORA, "gradient_checkpointing": True},
    "qlora": QLORA,
    "qlora, checkpointing": {**QLORA, "gradient_checkpointing": True},
}


ROUNDS = 25


def main() -> None:
    import torch
    import transformers

    from autoft.trainer.recipe import Recipe

    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: run it under tests/standin/standin.py")
    config = transformers.AutoConfig.for_model("llama", **SMOLLM2_135M)
    recipes = {name: Recipe.from_dict(settings) for name, settings in CASES.items()}
    steps = {name: prepared_step(config, recipe, "cuda") for name, recipe in recipes.items()}
    quickest = dict.fromkeys(CASES, float("inf"))
    for _ in range(ROUNDS):  # in turn: what else the machine does is in the way of all alike
        for name, step in steps.items():
            began = time.process_time()
            step()
            quickest[name] = min(quickest[name], time.process_time() - began)
    counts = {name: _counts(recipe, config) for name, recipe in recipes.items()}
    a_launch = {name: quickest[name] / counts[name]["launches"] for name in CASES if name.startswith("lora")}
    a_four_bit = {
        name: (quickest[name] / a_launch[name.removeprefix("q")] - counts[name]["launches"]) / counts[name]["unpacks"]
        for name in CASES
        if name.startswith("qlora")
    }
    write_results(
        "launch_cost",
        {
            "device": torch.cuda.get_device_name(),
            "rounds": ROUNDS,
            "steps": {name: {"quickest_s": round(quickest[name], 4), **counts[name]} for name in CASES},
            "us_a_launch": {name: round(1e6 * seconds, 1) for name, seconds in a_launch.items()},
            "launches_an_unpack": {name: round(launches, 2) for name, launches in a_four_bit.items()},
        },
    )


def _counts(recipe: Any, config: Any) -> dict[str, int]:
    """What the planner counts in a step."""
    from autoft.planner.kernels.rules import Device
    from autoft.planner.rehearsal.rehearse import find_depth, rehearse

    rehearsal = rehearse(recipe, config, Device((7, 5)), depth=find_depth(recipe, config))
    work = rehearsal.work + rehearsal.optimizer_work
    unpacks = sum(launches for kernel, launches in work.items() if kernel.kind == "unpack")
    return {"launches": work.total(), "unpacks": unpacks}


if __name__ == "__main__":
    main()
