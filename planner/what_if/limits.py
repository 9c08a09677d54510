"""What if? The longest sequence, the highest rank, the largest micro-batch that fits."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from autoft.errors import DoesNotFit, OptionError
from autoft.planner.estimate import Estimate
from autoft.planner.search.bisection import largest
from autoft.planner.search.candidates import base_bits, describe, state_bits
from autoft.planner.search.parallel import spread
from autoft.planner.search.search import GROWING
from autoft.planner.search.sequence_length import longest_row
from autoft.planner.what_if.context import Frame
from autoft.schema import Record
from autoft.trainer.optimizers import spec_of
from autoft.trainer.recipe import Recipe, applies
from autoft.units import size

Quantity = Literal["seq_len", "rank", "micro_batch"]

SEQ_LEN_STEP = 64
RANK_STEP = 8  # tensor cores want multiples of 8; below it the powers of two
# What of the peak grows with the rank, by the trace's kinds
OF_A_RANK = ("adapter", "gradients", "optimizer")
MOST_ROWS = 4096  # assumption: nobody asks for a larger micro-batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling(Record):
    """How far one recipe goes.

    value: the most that fits, None where not even the least does; recipe and estimate: of that value, else of the
    least. next_value, next_estimate: the value after it, which does not fit; None where there is none.
    """

    value: int | None
    recipe: Recipe
    estimate: Estimate
    next_value: int | None = None
    next_estimate: Estimate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit(Record):
    """The most of a quantity that fits, over all recipes that the settings leave.

    bound: the most that was asked for, and bound_by: what sets it. best: of the ceilings, the highest; of several the
    one that the plan would prefer. ceilings: of every recipe that was tried, best first.
    """

    model: str
    target: str
    quantity: Quantity
    bound: int
    bound_by: str
    best: Ceiling
    ceilings: tuple[Ceiling, ...]


def find_limit(frame: Frame, quantity: Quantity) -> Limit:
    """The most of `quantity` that fits, each answer rehearsed, and so the value after it.

    Of the plan's candidates with the smallest micro-batch, unless the settings pin another.
    Raises: DoesNotFit where not even the least fits, OptionError where the settings pin the quantity itself.
    """
    values, bound_by = _values(frame, quantity)
    ceilings = _ceilings(frame, _recipes(frame), quantity, values)
    if all(ceiling.value is None for ceiling in ceilings):
        ceilings += _ceilings(frame, frame.streamed_recipes(), quantity, values)
    best = min(ceilings, key=_rank)
    lighter = list(_lighter(frame, best.recipe))
    ceilings += _ceilings(frame, lighter, quantity, values, best)
    ceilings.sort(key=_rank)
    best = ceilings[0]
    if best.value is None:
        closest = min(ceilings, key=lambda c: c.estimate.device_bytes)
        raise DoesNotFit(
            f"nothing fits {frame.target.name}, {size(closest.estimate.available_bytes)} usable, at any "
            f"{in_words(quantity)}. Closest: {describe(closest.recipe)}, {values[0]} {unit(quantity)}, "
            f"{size(closest.estimate.device_bytes)}",
            fix="a smaller model, or a card with more memory (autoft fit MODEL --cards lists them)",
        )
    return Limit(
        model=frame.request.model,
        target=frame.target.name,
        quantity=quantity,
        bound=values[-1],
        bound_by=bound_by,
        best=best,
        ceilings=tuple(ceilings),
    )


def _rank(ceiling: Ceiling) -> tuple[int, int, bool, int]:
    recipe = ceiling.recipe
    return -(ceiling.value or 0), -base_bits(recipe), recipe.gradient_checkpointing, -state_bits(recipe)


def in_words(quantity: Quantity) -> str:
    """Sequence length, rank, micro-batch."""
    return {"seq_len": "sequence length", "rank": "rank", "micro_batch": "micro-batch"}[quantity]


def unit(quantity: Quantity) -> str:
    """What it is counted in; a rank is a bare number."""
    return {"seq_len": "tokens", "rank": "as rank", "micro_batch": "rows"}[quantity]


def _recipes(frame: Frame) -> list[Recipe]:
    """Those that lie at the ends: of 8-bit bases and half savings only where nothing else is left."""
    recipes = frame.recipes()
    return [r for r in recipes if base_bits(r) != 8 and r.checkpoint_every == 1] or recipes


def _values(frame: Frame, quantity: Quantity) -> tuple[Sequence[int], str]:
    """(what can be asked for, ascending; what sets the end of it)."""
    shape = frame.estimator.shape
    if quantity == "seq_len":
        scaling = frame.question.pinned.get("rope_scaling")
        longest = longest_row(shape, scaling)
        least = shape.max_position + SEQ_LEN_STEP if scaling else SEQ_LEN_STEP
        steps = list(range(least, longest + 1, SEQ_LEN_STEP))
        bound_by = f"{scaling} was not shown to go further" if scaling else f"{shape.name} was made for no more"
        return (steps if steps and steps[-1] == longest else [*steps, longest]), bound_by
    if quantity == "rank":
        pinned = frame.question.pinned
        if not applies("rank", pinned.get("method", "lora"), pinned.get("adapter", "lora")):
            raise OptionError("what is trained has no rank", fix="leave out --set adapter and --method full")
        # above it the two factors hold more weights than the square matrix that they stand for
        return [1, 2, 4, *range(RANK_STEP, shape.hidden_size + 1, RANK_STEP)], "its hidden size: more has no use"
    return range(1, MOST_ROWS + 1), "more was not tried"


def _lighter(frame: Frame, recipe: Recipe) -> Iterator[Recipe]:
    """The same with less and less optimizer state."""
    lighter = frame.question.lighter(recipe)
    while lighter is not None:
        yield lighter
        lighter = frame.question.lighter(lighter)


def _ceilings(
    frame: Frame, recipes: Sequence[Recipe], quantity: Quantity, values: Sequence[int], like: Ceiling | None = None
) -> list[Ceiling]:
    """Of each recipe. like: of the same one with another optimizer, which tells where to look first."""

    def first(recipe: Recipe) -> int:
        if like is not None:
            value = _with_optimizer(like, recipe, quantity)
        elif frame.question.weights_bytes(recipe) > frame.target.available_bytes:
            value = values[0]
        else:
            value = getattr(recipe, quantity)  # as the plan has it
        return max(0, bisect_right(values, value) - 1)

    alone = frame.target.device == "cpu"  # PyTorch's threads, which its estimate times, do not survive a fork
    hardest = recipes[::-1]  # what saves more goes further, and is asked of more values
    if recipes and not alone and like is None:
        # imports once what each process needs
        frame.question.rehearse(_at(hardest[0], quantity, values[first(hardest[0])]))
    ceilings = spread(
        lambda recipe: _ceiling(frame, recipe, quantity, values, first(recipe)),
        hardest,
        alone=alone,
        fewest=1,
        uneven=True,
    )
    return list(ceilings)[::-1]


def _with_optimizer(like: Ceiling, recipe: Recipe, quantity: Quantity) -> int:
    """About how far `recipe` goes, which is `like` with less optimizer state."""
    if like.value is None:
        return 0
    held, estimate = dict(like.estimate.components), like.estimate
    before = held.get("optimizer", 0)
    held["optimizer"] = int(before * _state_bits(recipe) / max(1, _state_bits(like.recipe)))
    room = estimate.available_bytes - estimate.device_bytes + before - held["optimizer"]
    return like.value + int(room / max(1.0, _rise(held, quantity, like.value)))


def _state_bits(recipe: Recipe) -> int:
    """Of a number in the optimizer's state on the card."""
    return 0 if spec_of(recipe.optimizer).paged else state_bits(recipe)


def _rise(components: Mapping[str, int], quantity: Quantity, value: int) -> float:
    """About the bytes that one more of the quantity takes, from what lives at the peak."""
    kinds = OF_A_RANK if quantity == "rank" else GROWING
    return sum(components.get(kind, 0) for kind in kinds) / value


def _ceiling(frame: Frame, recipe: Recipe, quantity: Quantity, values: Sequence[int], first: int) -> Ceiling:
    """first: the place in `values` to ask first."""
    question, at = frame.question, functools.partial(_at, recipe, quantity)
    place = largest(
        values,
        lambda value: question.device_bytes(at(value)),
        frame.target.available_bytes,
        near=first,
        rise=lambda value: _rise(question.components(at(value)), quantity, value),
    )
    largest_recipe = at(values[max(place, 0)])
    beyond = values[place + 1] if 0 <= place < len(values) - 1 else None
    return Ceiling(
        value=values[place] if place >= 0 else None,
        recipe=largest_recipe,
        estimate=question.estimate(largest_recipe),
        next_value=beyond,
        next_estimate=None if beyond is None else question.estimate(at(beyond)),
    )


def _at(recipe: Recipe, quantity: Quantity, value: int) -> Recipe:
    changed: dict[str, Any] = {quantity: value}
    return replace(recipe, **changed)
