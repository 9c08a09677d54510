"""`main([SPEC])`: opens runs as `autoft serve` does, fills the context, and prints what that took and was predicted.

SPEC is JSON: "folders" of the runs, "model", the "recipe" of all, and "context": tokens.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from autoft.trainer.runtime import environment

ANSWER = 4  # tokens


def main(words: list[str]) -> None:
    spec = json.loads(words[0])
    environment.prepare()
    import torch

    from autoft.trainer.recipe import Recipe
    from autoft.trainer.serving.models import open_models

    folders = [Path(folder) for folder in spec["folders"]]
    models = open_models(folders)
    loaded, reserved_loaded = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    served = models[folders[-1].name]
    ids = torch.full((1, spec["context"] - ANSWER), 5, device="cuda")
    with torch.inference_mode(), served.active():
        served.talker.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ANSWER,
            min_new_tokens=ANSWER, pad_token_id=0,
        )  # fmt: skip
    figures = {
        "loaded": loaded,
        "reserved_loaded": reserved_loaded,
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }
    recipe = replace(Recipe.from_dict(spec["recipe"]), micro_batch=1, seq_len=spec["context"])
    print(json.dumps(figures | predicted(recipe, spec["model"], len(folders))))


def predicted(recipe: object, model: str, adapters: int) -> dict[str, int]:
    """The same figures of the estimate."""
    import torch

    from autoft.planner.kernels.rules import Device
    from autoft.planner.memory.allocator import Allocator
    from autoft.planner.memory.replay import replay
    from autoft.planner.rehearsal.answering import answering, rehearse_answer
    from autoft.planner.rehearsal.layers import pairs
    from autoft.planner.rehearsal.rehearse import Kept, find_depth
    from autoft.trainer.sources.resolve import load_config, resolve

    properties = torch.cuda.get_device_properties(0)
    device = Device((properties.major, properties.minor), properties.multi_processor_count)
    config, plain = load_config(resolve(model)), answering(recipe)
    rehearsal = rehearse_answer(plain, config, device, depth=find_depth(plain, config), adapters=adapters, kept=Kept())
    allocator = Allocator(expandable_segments=True)
    for phase in rehearsal.phases[: rehearsal.steady]:
        allocator.run(pairs(phase.events))
        if phase.empty_cache:
            allocator.empty_cache()
    memory = replay(rehearsal, Allocator(expandable_segments=True))
    return {
        "predicted_loaded": allocator.allocated,
        "predicted_reserved_loaded": allocator.reserved,
        "predicted_peak": memory.phases["prompt"],
        "predicted_reserved": memory.reserved,
    }
