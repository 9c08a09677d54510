"""Searches over rehearsals that rest on one property: more of a quantity never needs less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from autoft.planner.choose import Choice, choose
from autoft.planner.estimate import Estimate
from autoft.planner.request import Prefer
from autoft.trainer.recipe import Recipe

EstimateOf = Callable[[Recipe], Estimate]


def largest(values: Sequence[int], need: Callable[[int], int], room: int) -> int:
    """The place in `values` of the largest one that needs no more than `room`; -1 where none does.

    values: ascending. need: bytes; asked of few values, always of the found one and of the one after it.
    The next to be asked is where a straight line through the two last ones crosses `room`: outwards at most eight times
    as far, since the far end is slow to rehearse; inwards the middle, once a guess has left more than half.
    """
    last = len(values) - 1
    fits, needs_at_fits = 0, need(values[0])
    if needs_at_fits > room:
        return -1
    fails: int | None = None
    needs_at_fails = slope = 0.0
    halve = False
    while fits < last if fails is None else fails - fits > 1:
        if fails is None:
            crossing = fits + int((room - needs_at_fits) / slope) if slope > 0 else fits + 1
            guess = min(max(crossing, fits + 1), 8 * (fits + 1), last)
        else:
            share = 0.5 if halve else (room - needs_at_fits) / (needs_at_fails - needs_at_fits)
            guess = min(max(fits + int(share * (fails - fits)), fits + 1), fails - 1)
        needs = need(values[guess])
        width = None if fails is None else fails - fits
        if needs <= room:
            slope = (needs - needs_at_fits) / (guess - fits)
            fits, needs_at_fits = guess, needs
        else:
            fails, needs_at_fails = guess, needs
        halve = width is not None and fails is not None and 2 * (fails - fits) > width
    return fits


def pick(recipes: Sequence[Recipe], estimate: EstimateOf, *, prefer: Prefer, target: str) -> Choice:
    """What `choose` would take of all `recipes`, of which only few are estimated.

    Of recipes that differ in the micro-batch alone the largest that fits is the quickest, and the smallest needs the
    least: one of them stands for all. Raises: DoesNotFit, naming the candidate that came closest, when none fits.
    """
    ways: dict[Recipe, list[Recipe]] = {}
    for recipe in recipes:
        ways.setdefault(replace(recipe, micro_batch=1), []).append(recipe)
    found: list[tuple[Recipe, Estimate]] = []
    # the order of "balanced", which can stop at the first that fits
    for way in sorted(ways, key=lambda recipe: (recipe.method == "qlora", recipe.gradient_checkpointing)):
        batches = sorted(ways[way], key=lambda recipe: recipe.micro_batch)
        place = 0
        if prefer != "memory":
            place = max(0, _largest_fitting(batches, estimate))
        found.append((batches[place], estimate(batches[place])))
        if prefer == "balanced" and found[-1][1].fits == "yes":
            break
    return choose(found, prefer=prefer, target=target)


def closest(recipes: Sequence[Recipe], estimate: EstimateOf) -> tuple[Recipe, Estimate]:
    """Of `recipes` the one that needs the least: one with the smallest micro-batch."""
    least = min(recipe.micro_batch for recipe in recipes)
    found = [(recipe, estimate(recipe)) for recipe in recipes if recipe.micro_batch == least]
    return min(found, key=lambda pair: pair[1].device_bytes)


def _largest_fitting(batches: Sequence[Recipe], estimate: EstimateOf) -> int:
    return largest(
        range(len(batches)),
        lambda place: estimate(batches[place]).device_bytes,
        estimate(batches[0]).available_bytes,
    )
