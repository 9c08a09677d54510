"""The search finds what an exhaustive one would, with fewer rehearsals. Memory and time are made up here, lawfully:
memory bends upwards with the micro-batch and falls with every saving, time a row does the opposite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.planner.estimate import Estimate, Range
from autoft.planner.search.candidates import BASES, SAVINGS, Family, base_bits, lighter
from autoft.planner.search.rank import PREFERENCES, choose, order
from autoft.planner.search.search import Candidate, Search
from autoft.trainer.optimizers import OPTIMIZERS
from autoft.trainer.recipe import Recipe
from autoft.units import pace

MICRO_BATCHES = (1, 2, 4, 8, 16)
FAMILIES = [
    Family(base, saving, tuple(Recipe(**kind, **saved, micro_batch=rows) for rows in MICRO_BATCHES))
    for base, kind in enumerate(BASES)
    for saving, saved in enumerate(SAVINGS)
    if "experts_4bit" not in kind  # which is a matter of the model, and takes no checkpointing of every 2nd layer
]

NUMBER = len(FAMILIES) * len(MICRO_BATCHES)
NUMBER += 2 * sum(len(family.recipes) for family in FAMILIES if family.recipes[0].method != "full")

worlds = st.fixed_dictionaries(
    {
        "weights": st.integers(1, 1000),
        "row": st.integers(1, 500),
        "state": st.integers(0, 800),  # of the optimizer
        "early": st.integers(0, 2000),  # of loading, which no micro-batch changes
        "launch": st.floats(0.01, 2),
        "room": st.integers(1, 5000),
    }
)

LIGHTER = {spec.lighter for spec in OPTIMIZERS.values() if spec.lighter}


def estimate(world: dict[str, Any], recipe: Recipe) -> Estimate:
    heavy = replace(recipe, optimizer="adamw_torch") if recipe.method != "full" else recipe
    saving = next(family.saving for family in FAMILIES if heavy in family.recipes)
    bits = base_bits(recipe)
    weights, rows = world["weights"] * bits, recipe.micro_batch * world["row"]
    growing = rows >> (2 * saving)
    state = {"adamw_8bit": world["state"] // 4, "paged_adamw_8bit": 0, "adafactor": 0}.get(
        recipe.optimizer, world["state"]
    )
    need = max(weights + growing + state, weights + world["early"])
    time = recipe.micro_batch * (1 + 0.5 * saving + (16 - bits) / 40) + world["launch"]
    return Estimate(
        method="rehearsal", peak_allocated_bytes=need, peak_reserved_bytes=need, device_bytes=need,
        available_bytes=world["room"], fits="yes" if need <= world["room"] else "no",
        components={"weights": weights, "activations": growing, "optimizer": state}, phases={"step": need},
        step_time_s=Range(lower=time, upper=time), tokens_per_s=1.0, trainable_params=1, total_params=2, assumptions=(),
    )  # fmt: skip


def search(world: dict[str, Any]) -> Search:
    return Search(
        estimate=lambda recipe: estimate(world, recipe),
        device_bytes=lambda recipe: estimate(world, recipe).device_bytes,
        available_bytes=world["room"],
        context_bytes=0,
        weights_bytes=lambda recipe: world["weights"] * base_bits(recipe),
        padding=lambda micro_batch: 1.0,
        lighter=lambda recipe: lighter(recipe, "cuda", {}),
        gpu=False,
    )


def everything(world: dict[str, Any]) -> list[Candidate]:
    recipes = [recipe for family in FAMILIES for recipe in family.recipes]
    light = [replace(r, optimizer=name) for r in recipes if r.method != "full" for name in LIGHTER]
    found = [(recipe, estimate(world, recipe)) for recipe in (*recipes, *light)]
    return [Candidate(recipe, need, need.step_time_s.middle / recipe.micro_batch) for recipe, need in found]


@given(world=worlds, prefer=st.sampled_from([p for p in PREFERENCES if p != "memory"]))
@settings(deadline=None)
def test_it_finds_what_trying_everything_finds(world: dict[str, Any], prefer: Any) -> None:
    found = search(world)
    found.largest(FAMILIES)
    found.settle(FAMILIES, lambda candidate: order(candidate, prefer), step=-1)
    best = choose(list(found.found.values()), prefer=prefer)
    truly = choose(everything(world), prefer=prefer)
    assert (best is None) == (truly is None)
    if best is not None and truly is not None:
        keys = [order(found._try(choice.recipe), prefer) for choice in (best, truly)]
        # all but which of two that take the same time needs less memory
        assert keys[0][:-4] == keys[1][:-4]
    assert len(found.found) < len(everything(world))


@given(world=worlds)
@settings(deadline=None)
def test_the_least_memory_is_among_the_smallest_micro_batches(world: dict[str, Any]) -> None:
    found = search(world)
    found.smallest(FAMILIES)
    best, truly = choose(list(found.found.values()), prefer="memory"), choose(everything(world), prefer="memory")
    assert (best is None) == (truly is None)
    if best is not None and truly is not None:
        assert best.estimate.device_bytes == truly.estimate.device_bytes


@given(world=worlds, prefer=st.sampled_from(PREFERENCES), more=st.integers(0, 5000))
@settings(deadline=None)
def test_more_memory_never_leads_to_a_later_choice(world: dict[str, Any], prefer: Any, more: int) -> None:
    roomier = {**world, "room": world["room"] + more}
    before, after = (choose(everything(w), prefer=prefer) for w in (world, roomier))
    if before is not None:
        assert after is not None
        keys = [
            order(next(c for c in everything(world) if c.recipe == choice.recipe), prefer) for choice in (after, before)
        ]
        assert keys[0] <= keys[1]


@given(
    world=worlds,
    prefer=st.sampled_from(PREFERENCES),
    shuffled=st.permutations(range(NUMBER)),
)
@settings(deadline=None)
def test_the_order_of_candidates_does_not_matter(world: dict[str, Any], prefer: Any, shuffled: list[int]) -> None:
    candidates = everything(world)
    assert choose(candidates, prefer=prefer) == choose([candidates[i] for i in shuffled], prefer=prefer)


def test_a_smaller_micro_batch_is_tried_where_it_is_padded_less() -> None:
    world = {"weights": 1, "row": 1, "state": 0, "early": 0, "launch": 0.0, "room": 10_000}
    found = replace(search(world), padding=lambda micro_batch: 0.5 + micro_batch / 32, found={}, pruned=[])
    found.largest(FAMILIES[:1])
    best = choose(list(found.found.values()), prefer="speed")
    assert best is not None
    assert best.recipe.micro_batch == 1


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.0, "equally fast"),
        (1.004, "equally fast"),
        (1.04, "4% slower"),
        (0.96, "4% faster"),
        (1.5, "1.50x slower"),
        (0.5, "2.00x faster"),
    ],
)
def test_a_time_beside_another_is_said_in_words(ratio: float, words: str) -> None:
    assert pace(ratio) == words
