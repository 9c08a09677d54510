"""The choice: of all candidates, which one to run, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from autoft.errors import DoesNotFit
from autoft.planner.estimate import Estimate
from autoft.planner.plan_file import Alternative
from autoft.planner.request import Prefer
from autoft.trainer.recipe import Recipe
from autoft.units import size

# What each preference looks at, in this order; the first difference decides.
_ORDER: dict[str, tuple[str, Callable[[Recipe, Estimate], tuple[Any, ...]]]] = {
    "balanced": (
        "the 16-bit base, then no checkpointing, then the largest micro-batch",
        lambda r, e: (r.method == "qlora", r.gradient_checkpointing, -r.micro_batch),
    ),
    "quality": (
        "the 16-bit base, then time",
        lambda r, e: (r.method == "qlora", e.step_time_s.middle / r.micro_batch),
    ),
    "speed": (
        "time a sequence, then the 16-bit base",
        lambda r, e: (e.step_time_s.middle / r.micro_batch, r.method == "qlora", -r.micro_batch),
    ),
    "memory": ("memory", lambda r, e: (e.device_bytes,)),
}  # fmt: skip
PREFERENCES = tuple(_ORDER)


@dataclass(frozen=True, slots=True)
class Choice:
    recipe: Recipe
    estimate: Estimate
    reasons: tuple[str, ...]
    alternatives: tuple[Alternative, ...]


def choose(estimates: Sequence[tuple[Recipe, Estimate]], *, prefer: Prefer, target: str) -> Choice:
    """The best fitting candidate in the order of `prefer`, the others behind it with their reasons.

    Raises: DoesNotFit, naming the candidate that came closest, when none fits.
    """
    words, order = _ORDER[prefer]
    fitting = sorted((pair for pair in estimates if pair[1].fits == "yes"), key=lambda pair: order(*pair))
    if not fitting:
        recipe, estimate = min(estimates, key=lambda pair: pair[1].device_bytes)
        raise DoesNotFit(
            f"nothing fits {target}, of which {size(estimate.available_bytes)} can be used. "
            f"Closest: {describe(recipe)}, {size(estimate.device_bytes)}"
        )
    recipe, estimate = fitting[0]
    rejected = sorted((pair for pair in estimates if pair[1].fits != "yes"), key=lambda pair: pair[1].device_bytes)
    return Choice(
        recipe,
        estimate,
        _reasons(recipe, estimate, estimates, words, prefer),
        tuple(_alternative(r, e, recipe, estimate, words) for r, e in (*fitting[1:], *rejected)),
    )


def describe(recipe: Recipe) -> str:
    """qlora nf4, micro-batch 4, checkpointing."""
    base = f"qlora {recipe.quant_type}" if recipe.quant_type else f"lora on {recipe.base_dtype}"
    checkpointing = ", checkpointing" if recipe.gradient_checkpointing else ""
    offloaded = " on the host" if recipe.offload_checkpoints else ""
    return f"{base}, micro-batch {recipe.micro_batch}{checkpointing}{offloaded}"


def _bits(recipe: Recipe) -> int:
    return 8 if recipe.quant_type == "int8" else 4


def _reasons(
    recipe: Recipe, estimate: Estimate, estimates: Sequence[tuple[Recipe, Estimate]], words: str, prefer: str
) -> tuple[str, ...]:
    free = size(estimate.available_bytes)
    reasons = [f"{describe(recipe)} needs {size(estimate.device_bytes)} of the {free} that can be used"]
    if len(estimates) == 1:
        return (*reasons, "it is the only candidate that the settings leave")
    reasons.append(f"prefer {prefer} takes, of what fits: {words}")
    by_recipe = dict(estimates)
    if recipe.method == "lora":
        reasons.append("the base stays in 16 bits or more: it fits, so nothing is given up to 4-bit quantization")
    else:
        whole = by_recipe.get(replace(recipe, method="lora", quant_type=None, double_quant=False))
        if whole is not None and whole.fits != "yes":
            need = size(whole.device_bytes)
            reasons.append(
                f"{_bits(recipe)}-bit buys the fit: the same step on the {recipe.base_dtype} base needs {need}"
            )
    if recipe.gradient_checkpointing:
        plain = by_recipe.get(replace(recipe, gradient_checkpointing=False, offload_checkpoints=False))
        if plain is not None and plain.fits != "yes":
            reasons.append(f"checkpointing buys the fit: without it the step needs {size(plain.device_bytes)}")
    return tuple(reasons)


def _alternative(recipe: Recipe, estimate: Estimate, chosen: Recipe, best: Estimate, words: str) -> Alternative:
    need = size(estimate.device_bytes)
    if estimate.fits != "yes":
        over = size(estimate.device_bytes - estimate.available_bytes)
        return Alternative(
            role="rejected",
            recipe=recipe,
            estimate=estimate,
            reason=f"needs {need}, {over} more than can be used",
        )
    role: Literal["fallback", "runner_up"] = "fallback" if estimate.device_bytes < best.device_bytes else "runner_up"
    return Alternative(
        role=role, recipe=recipe, estimate=estimate, reason=f"fits in {need}; {_loss_against(recipe, chosen, words)}"
    )


def _loss_against(recipe: Recipe, chosen: Recipe, words: str) -> str:
    """The first thing, in plain words, in which `recipe` differs from the chosen one."""
    if recipe.method != chosen.method:
        return (
            f"quantizes the base to {_bits(recipe)} bits, which is not needed"
            if recipe.method == "qlora"
            else f"comes later in the order: {words}"
        )
    if recipe.gradient_checkpointing and not chosen.gradient_checkpointing:
        return "computes the forward twice to save memory that is there"
    if recipe.micro_batch < chosen.micro_batch:
        return "smaller micro-batches use the device less well"
    return f"comes later in the order: {words}"
