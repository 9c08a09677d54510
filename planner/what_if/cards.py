"""Which cards of the catalogue would do? The plan's choice on each, rehearsed once for all with the same kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from autoft.planner.estimate import Range
from autoft.planner.estimator.estimate_recipe import UNKNOWN_CAPABILITY
from autoft.planner.estimator.target import target_of_profile
from autoft.planner.search.parallel import spread
from autoft.planner.search.problem import limited
from autoft.planner.what_if.context import Frame
from autoft.profiles.architectures import architecture
from autoft.profiles.gpu_catalogue import GpuProfile, gpu_profiles
from autoft.schema import Record
from autoft.trainer.recipe import Recipe

SHARED = "cards with the same kernels share their rehearsals; `autoft plan --gpu NAME` rehearses for that card alone"


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFit(Record):
    """The plan's choice on one card, or the recipe that comes closest where fits is "no".

    card: the catalogue's name. run_time_s, run_energy_kwh: of the whole run, without data of a million tokens.
    power_w: what the card is made for.
    """

    card: str
    product: str
    total_bytes: int
    available_bytes: int
    fits: Literal["yes", "no"]
    recipe: Recipe
    device_bytes: int
    step_time_s: Range
    tokens_per_s: float
    run_time_s: Range
    run_energy_kwh: Range | None = None
    power_w: float | None = None


def fit_all_cards(frame: Frame) -> list[CardFit]:
    """One CardFit a card, ordered by memory, then by name."""
    kinds: dict[object, list[GpuProfile]] = {}
    for profile in gpu_profiles().values():
        # an AMD card has none, and the estimator rehearses it so
        card = architecture(profile.compute_capability or UNKNOWN_CAPABILITY)
        kinds.setdefault((card.same_kernels or card.capability, profile.native_bf16), []).append(profile)
    fits_of_all = [
        fit for fits in spread(lambda cards: _fits(frame, cards), list(kinds.values()), fewest=1) for fit in fits
    ]
    return sorted(fits_of_all, key=lambda fit: (fit.total_bytes, fit.card))


def _fits(frame: Frame, cards: list[GpuProfile]) -> list[CardFit]:
    """Of cards that run the same kernels: what is rehearsed for the largest of them holds for all."""
    largest = max(cards, key=lambda profile: profile.multiprocessors.value if profile.multiprocessors else 0)
    shared = frame.on(target_of_profile(largest.name)).question
    fits = []
    for profile in cards:
        whole = target_of_profile(profile.name)
        estimator = shared.estimator.on(limited(whole, shared.limits.memory_gib), same_kernels=True).without_tight()
        question = replace(shared, estimator=estimator, whole=whole, run_takes_memo={})
        fits.append(_fit(frame.about(question), profile))
    return fits


def _fit(frame: Frame, profile: GpuProfile) -> CardFit:
    recipe, estimate = frame.best()
    run_time_s, run_energy_kwh = frame.run(recipe, estimate)
    gpu = frame.question.whole.gpu
    assert gpu is not None
    return CardFit(
        card=profile.name,
        product=profile.product,
        total_bytes=gpu.total_bytes,
        available_bytes=estimate.available_bytes,
        fits="yes" if estimate.fits == "yes" else "no",
        recipe=recipe,
        device_bytes=estimate.device_bytes,
        step_time_s=estimate.step_time_s,
        tokens_per_s=estimate.tokens_per_s,
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
        power_w=gpu.tdp_w,
    )
