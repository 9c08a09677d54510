"""The choice: of all candidates, which one to run, and why not the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoft.planner.alternative import Alternative
from autoft.planner.estimate import Estimate
from autoft.planner.facts import Reason
from autoft.planner.request import Prefer
from autoft.planner.search import words
from autoft.planner.search.candidates import base_bits, saving_of, state_bits
from autoft.planner.search.search import Candidate, Pruned
from autoft.trainer.recipe import Recipe

# balanced: how many times as long a plan may take to keep the base whole. Checkpointing makes at most half as many
# passes again (three instead of two through each layer), so 16 bits stay while that alone makes them fit. There is
# little quality to buy: NF4 is found on a par with 16 bits (QLoRA, arXiv:2305.14314, tables 3 and 4).
PRICE = {16: 1.0, 8: 1.0, 4: 1.5}
# What the time model, which sees arithmetic and traffic, does not see: LLM.int8 looks for outliers and waits for the
# host. On a T4 it took 2.5 times as long as float16 with a model of 149M weights and one of 494M, NF4 1.4 and 1.6 times
# (earino.github.io/applied-deep-learning, "Your int8 quantization is 2.5x slower than fp16").
SLOWER = {16: 1.0, 8: 2.5, 4: 1.0}

# Times nearer than this are taken as equal: the time model knows no better. Then the fewest savings count, which
# never shorten a step, and then the less memory. The search leaves out savings where fewer fit; put behind memory they
# would win by what is looked at with little memory and not with more.
SAME_TIME = 1.05

# Optimizer state of 8 bits learns as that of 32 does (arXiv:2110.02861), but bitsandbytes updates one weight after the
# other, where PyTorch's fused kernel takes all; checkpoints on the host want its memory and link free. Both are for
# what they make fit or clearly quicker, the state first: so many times SAME_TIME each counts.
NOTCHES_OF_STATE, NOTCHES_OF_OFFLOAD = 1, 2

# What each preference looks at, in this order; the first difference decides. No key depends on what else there is, so
# more memory, which only adds candidates, never leads to one that comes later.
_ORDER: dict[str, tuple[str, Callable[[Candidate], tuple[float, ...]]]] = {
    "balanced": (
        f"the fastest plan that fits; a 4-bit base must be {PRICE[4]:g}x faster to win",
        lambda c: (_pace(c, PRICE[base_bits(c.recipe)]),),
    ),
    "quality": (
        "the base with the most bits, then the fastest plan",
        lambda c: (-base_bits(c.recipe), c.recipe.experts_4bit, _pace(c)),
    ),
    "speed": (
        "the fastest plan, then the base with the most bits",
        lambda c: (_pace(c), -base_bits(c.recipe)),
    ),
    "memory": ("the least memory, then the fastest plan", lambda c: (c.estimate.device_bytes, _pace(c))),
}
PREFERENCES = tuple(_ORDER)


@dataclass(frozen=True, slots=True)
class Choice:
    recipe: Recipe
    estimate: Estimate
    reasons: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...]


def order(candidate: Candidate, prefer: Prefer) -> tuple[object, ...]:
    """What `prefer` compares; the smallest is best. Equals are told apart by savings, memory, and their fields.

    What keeps every layer on the GPU comes before what streams some: the time of their copies was never measured.
    """
    recipe = candidate.recipe
    return (
        recipe.streamed_layers > 0,
        *_ORDER[prefer][1](candidate),
        saving_of(recipe),
        recipe.streamed_layers,
        -state_bits(recipe),
        candidate.estimate.device_bytes,
        repr(recipe),
    )


def choose(
    candidates: Sequence[Candidate],
    *,
    prefer: Prefer,
    forbidden: Callable[[Candidate], str | None] = lambda _: None,
    pruned: Sequence[Pruned] = (),
) -> Choice | None:
    """The best fitting candidate in the order of `prefer`, the others behind it with their reasons; None if none fits.

    forbidden: why a limit of the user's rules a candidate out, None if none does. pruned: what was not rehearsed.
    """
    ranked = sorted(candidates, key=lambda c: order(c, prefer))
    limits = {c.recipe: forbidden(c) for c in ranked}
    allowed = [c for c in ranked if c.estimate.fits == "yes" and limits[c.recipe] is None]
    if not allowed:
        return None
    best, *others = allowed
    rejected = sorted((c for c in ranked if c not in allowed), key=lambda c: c.estimate.device_bytes)
    return Choice(
        best.recipe,
        best.estimate,
        _reasons(best, ranked, pruned, prefer),
        (*(_other(c, best) for c in others), *(_rejected(c, limits[c.recipe]) for c in rejected)),
    )


def _reasons(best: Candidate, ranked: list[Candidate], pruned: Sequence[Pruned], prefer: Prefer) -> tuple[Reason, ...]:
    reasons = [words.fits(best.recipe, best.estimate)]
    if len(ranked) == 1 and not pruned:
        return (*reasons, words.no_other())
    reasons.append(words.preferred(prefer, _ORDER[prefer][0]))
    compared = (
        _of_streaming(best, ranked, pruned),
        _of_base(best, ranked, pruned),
        _of_checkpointing(best, ranked),
        _of_state(best, ranked),
    )
    return (*reasons, *(reason for reason in compared if reason))


def _of_base(best: Candidate, ranked: list[Candidate], pruned: Sequence[Pruned]) -> Reason | None:
    """What the bits of the base are compared with, in figures."""
    bits = base_bits(best.recipe)
    other = _first(ranked, lambda c: base_bits(c.recipe) == (4 if bits == 16 else 16) and c.estimate.fits == "yes")
    if other is not None:
        return words.base_beside(best.recipe, other.recipe, other.estimate, times(other, best))
    if bits == 16:
        return words.base_kept()
    whole = (c for c in ranked if base_bits(c.recipe) == 16)
    least = min(whole, key=lambda c: c.estimate.device_bytes, default=None)
    if least is not None:
        return words.base_needed(best.recipe, least.recipe, least.estimate.device_bytes)
    heavy = next((g for g in pruned if base_bits(g.recipe) == 16 and g.weights_bytes is not None), None)
    if heavy is None or heavy.weights_bytes is None:
        return None
    return words.base_needed_for_weights(best.recipe, heavy.recipe, heavy.weights_bytes)


def _of_streaming(best: Candidate, ranked: list[Candidate], pruned: Sequence[Pruned]) -> Reason | None:
    if not best.recipe.streamed_layers:
        return None
    resident = (c for c in ranked if not c.recipe.streamed_layers)
    least = min(resident, key=lambda c: c.estimate.device_bytes, default=None)
    heavy = (each for each in pruned if each.weights_bytes is not None)
    lightest = min(heavy, key=lambda each: each.weights_bytes or 0, default=None)
    if least is not None:
        on_gpu = words.resident(least.recipe, least.estimate)
    elif lightest is not None:
        on_gpu = lightest.text
    else:
        return None  # the settings leave no other
    return words.streaming_needed(best.recipe, best.estimate, on_gpu)


def _of_checkpointing(best: Candidate, ranked: list[Candidate]) -> Reason | None:
    if not best.recipe.gradient_checkpointing or best.recipe.streamed_layers:
        return None
    bits = base_bits(best.recipe)
    plain = [c for c in ranked if base_bits(c.recipe) == bits and not c.recipe.gradient_checkpointing]
    fitting = _first(plain, lambda c: c.estimate.fits == "yes")
    if fitting is not None:
        return words.checkpointing_pays(fitting.recipe, times(fitting, best))
    least = min(plain, key=lambda c: c.estimate.device_bytes, default=None)
    return None if least is None else words.checkpointing_needed(least.recipe, least.estimate.device_bytes)


def _of_state(best: Candidate, ranked: list[Candidate]) -> Reason | None:
    """What the optimizer's lighter state is there for."""
    heavy = _first(ranked, lambda c: state_bits(c.recipe) == 32 and _but_for_state(c.recipe, best.recipe))
    if state_bits(best.recipe) == 32 or heavy is None:
        return None
    return words.state_needed(best.recipe, heavy.recipe, heavy.estimate.device_bytes)


def _but_for_state(one: Recipe, other: Recipe) -> bool:
    return replace(one, optimizer=other.optimizer) == other


def _other(candidate: Candidate, best: Candidate) -> Alternative:
    """One that fits as well: what it would gain and lose."""
    less = best.estimate.device_bytes - candidate.estimate.device_bytes
    bits, chosen = base_bits(candidate.recipe), base_bits(best.recipe)
    changed = None if bits == chosen else math.copysign(bits, bits - chosen)
    time_ratio = times(candidate, best)
    role: Literal["fallback", "runner_up"] = "fallback" if less > 0 else "runner_up"
    reason = f"fits: {words.beside(less, time_ratio, None if changed is None else int(changed))}"
    return alternative(role, candidate, reason, time_ratio)


def _rejected(candidate: Candidate, limit: str | None) -> Alternative:
    return alternative("rejected", candidate, limit or words.needs(candidate.estimate))


def alternative(
    role: Literal["fallback", "runner_up", "rejected"],
    candidate: Candidate,
    reason: str,
    time_ratio: float | None = None,
) -> Alternative:
    """The candidate as a plan tells of it. What its estimate assumes is in sentences alone; the chosen has records."""
    estimate = replace(candidate.estimate, assumption_records=())
    return Alternative(
        role=role,
        recipe=candidate.recipe,
        estimate=estimate,
        reason=reason,
        num_gpus=estimate.num_gpus,
        time_ratio=time_ratio,
    )


def _first(ranked: Sequence[Candidate], wanted: Callable[[Candidate], bool]) -> Candidate | None:
    return next((c for c in ranked if wanted(c)), None)


def times(candidate: Candidate, other: Candidate) -> float:
    """The time of a row, over the other's."""
    return row_time(candidate) / row_time(other)


def _pace(candidate: Candidate, price: float = 1.0) -> int:
    """The time of a row, in steps of SAME_TIME; price: how many times it counts."""
    recipe = candidate.recipe
    notches = NOTCHES_OF_STATE * (state_bits(recipe) < 32) + NOTCHES_OF_OFFLOAD * recipe.offload_checkpoints
    return round(math.log(row_time(candidate) * price) / math.log(SAME_TIME)) + notches


def row_time(candidate: Candidate) -> float:
    """Seconds that a row of data takes, with what the time model does not see."""
    return candidate.row_s * SLOWER[base_bits(candidate.recipe)]
