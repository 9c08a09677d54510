"""Which cards of the catalogue would do? The plan's choice on each, rehearsed once for all with the same kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from autoft.errors import DoesNotFit
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator import UNKNOWN_CAPABILITY, Estimator
from autoft.planner.frame import Frame, unlimited
from autoft.planner.ghost import Rehearsal
from autoft.planner.parallel import spread
from autoft.planner.search import closest, pick
from autoft.planner.target import Target, target_of
from autoft.planner.time import measure_cpu_flops
from autoft.profiles.gpu_catalogue import GpuProfile, gpu_profiles
from autoft.schema import Record
from autoft.trainer.recipe import Recipe

# Of two compute capabilities whose kernels take the same workspaces, the one that stands for both: attention.py and
# device.py tell them apart nowhere. None: an AMD card, which the estimator rehearses so.
SAME_KERNELS = {None: UNKNOWN_CAPABILITY, (8, 7): (8, 0), (8, 9): (8, 6), (10, 0): (9, 0), (12, 1): (12, 0)}
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
        capability = SAME_KERNELS.get(profile.compute_capability, profile.compute_capability)
        kinds.setdefault((capability, profile.native_bf16), []).append(profile)
    found = [fit for fits in spread(lambda cards: _fits(frame, cards), list(kinds.values())) for fit in fits]
    return sorted(found, key=lambda fit: (fit.total_bytes, fit.card))


def _fits(frame: Frame, cards: list[GpuProfile]) -> list[CardFit]:
    """Of cards that run the same kernels."""
    targets = {profile.name: _target(frame, profile.name) for profile in cards}
    model = max(targets.values(), key=lambda target: (target.gpu.multiprocessors or 0) if target.gpu else 0)
    kind = _Kind(frame, unlimited(model))
    return [_fit(frame, profile, targets[profile.name], kind) for profile in cards]


def _target(frame: Frame, name: str) -> Target:
    return target_of(frame.hardware, gpu_name=name, vram_gib=None, cpu_flops_per_s=measure_cpu_flops)


class _Kind:
    """What cards with the same kernels share: a rehearsal of each recipe, and its memory."""

    def __init__(self, frame: Frame, target: Target) -> None:
        self.frame = frame.on(target, frame.estimator.on(target))
        self._known: dict[Recipe, tuple[Estimate, Rehearsal]] = {}

    def of(self, estimator: Estimator) -> Callable[[Recipe], Estimate]:
        """Estimates for the card of `estimator`: the kind's memory, its own room and speed."""

        def estimate(recipe: Recipe) -> Estimate:
            if recipe not in self._known:
                rehearsal = self.frame.estimator.rehearse(recipe, accumulate=self.frame.accumulates(recipe))
                self._known[recipe] = self.frame.estimator.estimate_of(recipe, rehearsal), rehearsal
            shared, rehearsal = self._known[recipe]
            timing, available = estimator.timing(rehearsal), estimator.target.available_bytes
            return replace(
                shared,
                available_bytes=available,
                fits="yes" if shared.device_bytes <= available else "no",
                step_time_s=timing.step_s,
                step_energy_wh=timing.energy_wh,
                tokens_per_s=recipe.micro_batch * recipe.seq_len / timing.step_s.middle,
            )

        return estimate


def _fit(frame: Frame, profile: GpuProfile, target: Target, kind: _Kind) -> CardFit:
    estimate = kind.of(frame.estimator.on(target))
    recipes = kind.frame.recipes()
    try:
        choice = pick(recipes, estimate, prefer=frame.plan.prefer, target=target.name)  # type: ignore[arg-type]
        recipe, found = choice.recipe, choice.estimate
    except DoesNotFit:
        recipe, found = closest(recipes, estimate)
    run_time_s, run_energy_kwh = frame.run(recipe, found)
    assert target.gpu is not None
    return CardFit(
        card=profile.name,
        product=profile.product,
        total_bytes=target.gpu.total_bytes,
        available_bytes=found.available_bytes,
        fits="yes" if found.fits == "yes" else "no",
        recipe=recipe,
        device_bytes=found.device_bytes,
        step_time_s=found.step_time_s,
        tokens_per_s=found.tokens_per_s,
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
        power_w=target.gpu.tdp_w,
    )
