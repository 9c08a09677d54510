"""The Frame: what the questions around a plan start from, so that each is about the very step that would run."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field, replace
from typing import Any

from autoft.planner.candidates import candidates, parse_settings
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator import Estimator
from autoft.planner.plan import make_plan
from autoft.planner.plan_file import Plan
from autoft.planner.preset import defaults
from autoft.planner.request import Request
from autoft.planner.target import Target, target_of
from autoft.planner.time import measure_cpu_flops
from autoft.profiles.hardware import Hardware
from autoft.trainer.prepare import Prepared
from autoft.trainer.recipe import Recipe
from autoft.trainer.resolve import load_config, resolve

UNLIMITED_GIB = 4096.0  # more than any model here needs
TOKENS_WITHOUT_DATA = 1_000_000
# Of a Recipe, what decides the method: to pin one of them is to pin no other method in passing
METHOD_KEYS = frozenset({"method", "quant_type", "double_quant", "experts_4bit"})


@dataclass(frozen=True, slots=True)
class Frame:
    """One model, data and settings, on one target.

    plan: of the same request with memory enough for anything, which tells length, batch and schedule.
    pins: fields of the Recipe that the user or the preset has set, but for those in `Recipe` that a question varies.
    """

    request: Request
    hardware: Hardware
    plan: Plan
    prepared: Prepared | None
    target: Target
    estimator: Estimator
    pins: dict[str, Any]
    known: dict[Recipe, Estimate] = field(default_factory=dict)

    @property
    def seq_len(self) -> int:
        return self.plan.job.recipe.seq_len

    @property
    def rows_per_step(self) -> int:
        return self.plan.job.accumulation * self.plan.job.recipe.micro_batch

    @property
    def run_of(self) -> str:
        """What the figures of a whole run are of, in words."""
        return "a million tokens" if self.plan.steps is None else "the whole run on this data"

    def on(self, target: Target, estimator: Estimator) -> Frame:
        """The same question of another device, or another model."""
        return replace(self, target=target, estimator=estimator, known={})

    def recipes(self, *, rows_per_step: int | None = None, **pins: Any) -> list[Recipe]:
        """The plan's own candidates that the model takes. rows_per_step: 1 leaves one micro-batch, of one row.

        pins: more of them, which win. Raises: FileFormatError where they cannot be together.
        """
        pinned = {**self.pins, **pins}
        seq_len = pinned.pop("seq_len", None) or min(self.seq_len, self.estimator.shape.max_position)
        found = candidates(
            self.target,
            seq_len=seq_len,
            rows_per_step=rows_per_step or self.rows_per_step,
            attention=self.estimator.attention,
            pinned=pinned,
        )
        return [recipe for recipe in found if self.estimator.takes(recipe)] or found[:1]

    def estimate(self, recipe: Recipe) -> Estimate:
        """As the plan estimates it, each recipe once. Raises: ModelError when the model cannot take it."""
        if recipe not in self.known:
            self.known[recipe] = self.estimator.estimate(recipe, accumulate=self.accumulates(recipe))
        return self.known[recipe]

    def accumulates(self, recipe: Recipe) -> bool:
        """Whether an optimizer step has several micro-batches, so that gradients live through the later ones."""
        return recipe.micro_batch < self.rows_per_step

    def run(self, recipe: Recipe, estimate: Estimate) -> tuple[Range, Range | None]:
        """(seconds, kWh) of the whole run; without data of a million tokens. None: the device's power is not known.

        From rows of the mean length, at the quickest, to all as long as the longest, at the slowest.
        """
        plan, work = self.plan, self.plan.workload
        if work is None or plan.steps is None:
            least = most = TOKENS_WITHOUT_DATA / (recipe.micro_batch * recipe.seq_len)
        else:
            most = -(-plan.steps * self.rows_per_step // recipe.micro_batch)
            least = most if recipe.packing else most * min(1.0, work.mean_tokens / recipe.seq_len)
        step, energy = estimate.step_time_s, estimate.step_energy_wh
        seconds = Range(lower=least * step.lower, upper=most * step.upper)
        if energy is None:
            return seconds, None
        return seconds, Range(lower=least * energy.lower / 1000, upper=most * energy.upper / 1000)


def make_frame(request: Request, hardware: Hardware) -> Frame:
    """Raises: InputError of several kinds, as `make_plan` does; never DoesNotFit for want of memory."""
    target = target_of(
        hardware, gpu_name=request.gpu, vram_gib=request.vram_gib, cpu_flops_per_s=functools.cache(measure_cpu_flops)
    )
    user_pins, job_pins = parse_settings(request.settings)
    cheap = [("micro_batch=1", {"micro_batch"}), ("gradient_checkpointing=true", {"gradient_checkpointing"})]
    if not METHOD_KEYS & user_pins.keys():
        cheap.append(("method=lora", set()))
    settings = (*request.settings, *(word for word, keys in cheap if not keys & user_pins.keys()))
    plan, prepared = make_plan(replace(request, vram_gib=UNLIMITED_GIB, settings=settings), hardware)
    given = {*user_pins, *job_pins, *(("seq_len",) if request.seq_len else ())}
    pins = {**defaults(request.preset, given).recipe, **user_pins, "packing": plan.job.recipe.packing}
    pins.pop("seq_len", None)
    estimator = Estimator(request.model, load_config(resolve(request.model)), target)
    return Frame(request, hardware, plan, prepared, target, estimator, pins)


def unlimited(target: Target) -> Target:
    """The same device with memory for anything."""
    return dataclasses.replace(target, available_bytes=int(UNLIMITED_GIB * 2**30))
