"""The Frame: what the questions around a plan start from, so that each is about the very step that would run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from autoft.errors import OptionError
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import Target
from autoft.planner.plan.make import Asked, ask
from autoft.planner.request import Request
from autoft.planner.search.hyperparameters import run_takes
from autoft.planner.search.problem import Question
from autoft.planner.search.sequence_length import longest_row
from autoft.planner.search.synonyms import SETTINGS
from autoft.profiles.hardware import Hardware
from autoft.trainer.data.prepare import Prepared
from autoft.trainer.recipe import Recipe

TOKENS_WITHOUT_DATA = 1_000_000
# Of a Recipe, what decides the method: to pin one of them is to pin no other method in passing
METHOD_KEYS = frozenset(name for name, field in SETTINGS.items() if "method" in (name, field.setting.follows))


@dataclass(frozen=True, slots=True)
class Frame:
    """One model, data and settings, on one target. question: of the request, or of another device or model."""

    request: Request
    hardware: Hardware
    problem: Asked
    question: Question

    @property
    def estimator(self) -> Estimator:
        return self.question.estimator

    @property
    def target(self) -> Target:
        return self.question.target

    @property
    def prepared(self) -> Prepared | None:
        return self.problem.prepared

    @property
    def seq_len(self) -> int:
        return self.question.seq_len

    @property
    def run_of(self) -> str:
        """What the figures of a whole run are of, in words."""
        return "1M tokens" if self.question.rows is None else "the whole run on this data"

    def about(self, question: Question) -> Frame:
        return replace(self, question=question)

    def on(self, target: Target) -> Frame:
        """The same of another device."""
        return self.about(self.question.on(target))

    def of(self, estimator: Estimator) -> Frame:
        """The same of another model, whose sequences may have to be shorter."""
        seq_len = min(self.seq_len, longest_row(estimator.shape, self.question.pinned.get("rope_scaling")))
        return self.about(replace(self.question, estimator=estimator, seq_len=seq_len, run_takes_memo={}))

    def pinned(self, **pins: Any) -> Frame:
        """The same with more fields of the Recipe pinned."""
        return self.about(replace(self.question, pinned={**self.question.pinned, **pins}))

    def recipes(self) -> list[Recipe]:
        """The smallest micro-batch of each of the plan's families. Raises: FileFormatError where pins contradict."""
        return [family.recipes[0] for family in self.question.families()]

    def streamed_recipes(self) -> list[Recipe]:
        """The same with all layers streamed from the host's memory; none where that cannot be."""
        return [family.recipes[0] for family in self.question.streamed_families()]

    def best(self) -> tuple[Recipe, Estimate]:
        """What the plan would choose, or what comes closest where nothing fits: then its `fits` is not "yes"."""
        choice = self.question.choose(self.question.search())
        if choice is not None:
            return choice.recipe, choice.estimate
        return self.closest()

    def closest(self) -> tuple[Recipe, Estimate]:
        """What needs the least."""
        recipe = min(self.recipes(), key=self.question.device_bytes)
        while (lighter := self.question.lighter(recipe)) is not None:
            recipe = lighter
        return recipe, self.question.estimate(recipe)

    def run(self, recipe: Recipe, estimate: Estimate) -> tuple[Range, Range | None]:
        """(seconds, kWh) of the whole run; without data of a million tokens. None: the device's power is not known."""
        seconds, energy = self.question.run_takes(recipe)
        if seconds is not None:
            return seconds, energy
        return run_takes(estimate, TOKENS_WITHOUT_DATA / (recipe.micro_batch * recipe.seq_len))


def make_frame(request: Request, hardware: Hardware) -> Frame:
    """Raises: InputError of several kinds, as `make_plan` does; never DoesNotFit."""
    problem = ask(request, hardware)
    if problem.counts[0] > 1 or (request.gpu is not None and len(problem.counts) > 1):
        raise OptionError("this question is about one GPU", fix="--gpu NAME without a count, and no num_gpus")
    return Frame(request, hardware, problem, problem.question)
