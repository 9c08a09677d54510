"""What a plan has not looked at, a sentence each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from autoft.planner.estimate import Estimate
from autoft.planner.search.candidates import state_bits
from autoft.planner.search.search import Search
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.units import size


def not_tried(job: Job, estimate: Estimate, search: Search) -> list[str]:
    """What the plan has not looked at, and why."""
    recipe = job.recipe
    lines = ["torch.compile: not supported, the memory estimate would not apply"]
    if job.device == "cuda" and recipe.attention == "sdpa" and not recipe.packing:
        lines.append("flash_attention_2: on padded rows PyTorch's own flash kernel is the same; it is for packed ones")
    if recipe.method == "full":
        return lines
    if all(state_bits(candidate) == 32 for candidate in search.found):
        state = size(estimate.components.get("optimizer", 0))
        lines.append(
            f"optimizers of 8 bits or paged: the adapter's state takes {state}, no candidate misses by so little"
        )
    if job.from_adapter is None:
        lines += _other_adapters(recipe)
    if not recipe.packing:
        lines.append(
            "packing: over three seeds the starter learnt no worse with it; what it saves was not measured on a GPU "
            "(a preset or --set packing=true asks for it)"
        )
    return lines


def _other_adapters(recipe: Recipe) -> Iterator[str]:
    if recipe.adapter != "lora":
        yield f"LoRA: --set adapter={recipe.adapter} leaves no other kind of adapter"
        return
    if not recipe.use_dora:
        yield "DoRA: .469 where LoRA had .478, at 26 % more time (PEFT's MetaMathQA comparison, Llama-3.2-3B)"
    if not recipe.use_rslora:
        yield "rsLoRA: the best of that comparison at rank 64, not yet tried at this plan's scale and rate"
    yield "OFT (--set adapter=oft): .494 there where LoRA had .482, at 21 % more time; one seed"
    if recipe.init == "default":
        yield "PiSSA, OLoRA and orthogonal inits (--set init), LoRA+ (--set lora_plus_ratio): not in that comparison"
