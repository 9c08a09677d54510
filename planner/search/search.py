"""The search: which of the candidates are worth a rehearsal, and what speaks against the others?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from autoft.planner.estimate import Estimate
from autoft.planner.search.bisection import largest
from autoft.planner.search.candidates import Family, describe, describe_base
from autoft.planner.search.parallel import beside
from autoft.planner.search.words import weights_alone
from autoft.trainer.recipe import Recipe

# What of the peak grows with the micro-batch, by the trace's kinds
GROWING = ("inputs", "activations", "logits", "temporaries", "rounding")
# A half of a micro-batch is tried where it takes so much less padding
LESS_PADDING = 0.97
ROUNDED = 1.25  # the allocator may save more than what is let go: segments are whole


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe, its Estimate, and the seconds that a row of data takes with it, padding included."""

    recipe: Recipe
    estimate: Estimate
    row_s: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """Candidates that were not rehearsed. recipe: one of them. weights_bytes: where its weights alone are too much."""

    recipe: Recipe
    text: str
    weights_bytes: int | None = None


@dataclass(slots=True)
class Search:
    """estimate: rehearses. device_bytes: what it says of a recipe's memory, at less cost.

    context_bytes: what a run takes of the device before its first tensor. padding: tokens of a
    micro-batch of so many rows, padding included, over those of as many rows as long as the sequence. weights_bytes:
    the least that a recipe's base takes of the device. lighter: the same recipe with less optimizer state, None if
    there is none. gpu: a card, not a CPU, where large tensors can take more than their share of time. ram_bytes: of the
    host, free for streamed layers; None where not known.

    found: what was rehearsed. pruned: why the rest was not.
    """

    estimate: Callable[[Recipe], Estimate]
    device_bytes: Callable[[Recipe], int]
    available_bytes: int
    context_bytes: int
    weights_bytes: Callable[[Recipe], int]
    padding: Callable[[int], float]
    lighter: Callable[[Recipe], Recipe | None]
    gpu: bool
    ram_bytes: int | None = None
    found: dict[Recipe, Candidate] = field(default_factory=dict)
    pruned: list[Pruned] = field(default_factory=list)

    def smallest(self, families: Sequence[Family]) -> None:
        """Rehearse the smallest micro-batch of each family: what needs the least memory is among them."""
        for _, savings in groupby(families, key=lambda family: family.base):
            for number, family in enumerate(savings):
                if number == 0 and self._too_heavy(family.recipes[0]):
                    break
                recipe: Recipe | None = family.recipes[0]
                while recipe is not None:
                    self._try(recipe)
                    recipe = self.lighter(recipe)

    def least(self, families: Sequence[Family]) -> None:
        """Rehearse one recipe of each base, the one that saves most: where it does not fit, nothing does."""
        last_of = {family.base: family for family in families}
        for family in last_of.values():
            recipe = family.recipes[0]
            while (with_less_state := self.lighter(recipe)) is not None:
                recipe = with_less_state
            self._try(recipe)

    def largest(self, families: Sequence[Family]) -> None:
        """Rehearse what may be the quickest of each family that fits, and what shows why others do not.

        Larger micro-batches need more memory and, a row, no more time but for padding; savings are ordered by both. So
        whatever fits in full with few savings makes more of them needless, and whatever does not fit with all of
        them does not fit with few.
        """
        groups = [list(group) for _, group in groupby(families, key=lambda family: family.base)]
        # PyTorch's threads, which a CPU's estimate times, do not survive a fork
        for candidates, pruned in beside(self._base, groups, alone=not self.gpu):
            self.found |= candidates
            self.pruned += pruned

    @property
    def fitting(self) -> list[Candidate]:
        """What fits of all that was rehearsed."""
        return [candidate for candidate in self.found.values() if candidate.estimate.fits == "yes"]

    def stream_least(self, order: Callable[[Candidate], Any]) -> None:
        """Of the best by `order`, all of whose layers are streamed, rehearse the fewest layers with which it fits."""
        best = min(self.fitting, key=order, default=None)
        if best is None:
            return
        layers = best.recipe.streamed_layers

        def with_held(held: int) -> Recipe:
            """Fewer layers in the host's memory never need more of it, so that need not be asked again."""
            return replace(best.recipe, streamed_layers=layers - held)

        layer_bytes = self.weights_bytes(with_held(1)) - self.weights_bytes(with_held(0))
        held = largest(
            range(layers),
            lambda held: self.device_bytes(with_held(held)),
            self.available_bytes,
            near=(self.available_bytes - best.estimate.device_bytes) // max(1, layer_bytes),
            rise=lambda _: layer_bytes,
        )
        self._try(with_held(held))

    def settle(self, families: Sequence[Family], order: Callable[[Candidate], Any], *, step: Literal[1, -1]) -> None:
        """Rehearse larger (step 1) or smaller micro-batches of the best by `order` as long as they come before it."""
        best = min(self.fitting, key=order, default=None)
        recipes = next((f.recipes for f in families if best is not None and best.recipe in f.recipes), None)
        if best is None or recipes is None:  # a lighter optimizer is for one micro-batch
            return
        while 0 <= (place := recipes.index(best.recipe) + step) < len(recipes):
            other = self._try(recipes[place])
            if other.estimate.fits != "yes" or order(other) > order(best):
                return
            best = other

    def _base(self, savings: list[Family]) -> tuple[dict[Recipe, Candidate], list[Pruned]]:
        """What is found of one base; in a process of its own, so nothing of it is in `self` yet."""
        alone = replace(self, found={}, pruned=[])
        alone._explore(savings)
        return alone.found, alone.pruned

    def _explore(self, savings: list[Family]) -> None:
        if self._too_heavy(savings[0].recipes[0]):
            return
        name = describe_base(savings[0].recipes[0])
        for number, family in enumerate(savings):
            best = self._family(family)
            self._near_misses(family)
            if best is not None and best.recipe is family.recipes[-1]:
                if savings[number + 1 :]:
                    text = f"{name} with more memory savings: not needed, {describe(best.recipe)} fits"
                    self.pruned.append(Pruned(savings[number + 1].recipes[0], text))
                return

    def _too_heavy(self, recipe: Recipe) -> bool:
        """Whether its base's weights alone are more than the device has: then it is pruned."""
        least = self.weights_bytes(recipe)
        if least > self.available_bytes:
            self.pruned.append(Pruned(recipe, weights_alone(recipe, least), least))
        return least > self.available_bytes

    def _family(self, family: Family) -> Candidate | None:
        """The quickest that fits, None if none does."""
        smallest = self._try(family.recipes[0])
        if smallest.estimate.fits != "yes":
            return None
        low, high = 0, len(family.recipes) - 1  # low fits, none above high does
        place = self._guess(family, smallest)
        while low < high:
            place = max(low + 1, min(place, high))
            tried = self._try(family.recipes[place])
            if tried.estimate.fits == "yes":
                low, place = place, place + 1
                if low < high and not self._may_fit(family.recipes[place], smallest, tried):
                    break
            else:
                high = place = place - 1
        best = self.found[family.recipes[low]]
        while low > 0 and self._may_be_quicker(family.recipes[low - 1], best):
            low -= 1
            other = self._try(family.recipes[low])
            if other.row_s >= best.row_s:
                break
            best = other
        return best

    def _near_misses(self, family: Family) -> None:
        """With a lighter optimizer, what does not fit but would without its optimizer's state."""
        while (above := self._first_above(family)) is not None:
            self._family(above)
            family = above

    def _first_above(self, family: Family) -> Family | None:
        """The micro-batches that are too large, the first by no more than the state, with a lighter optimizer."""
        tried = [self.found[recipe] for recipe in family.recipes if recipe in self.found]
        smallest = next((candidate for candidate in tried if candidate.estimate.fits != "yes"), None)
        if smallest is None or self._misses(smallest) > _state(smallest):
            return None
        above = family.recipes[family.recipes.index(smallest.recipe) :]
        recipes = tuple(recipe for recipe in map(self.lighter, above) if recipe is not None)
        return replace(family, recipes=recipes) if recipes else None

    def _misses(self, candidate: Candidate) -> int:
        return candidate.estimate.device_bytes - self.available_bytes

    def _guess(self, family: Family, smallest: Candidate) -> int:
        """The largest place at which the recipe fits if what can grow grows in proportion to the micro-batch; or 1."""
        growing = sum(smallest.estimate.components.get(kind, 0) for kind in GROWING) / smallest.recipe.micro_batch
        room = self.available_bytes - smallest.estimate.device_bytes
        for place in range(len(family.recipes) - 1, 1, -1):
            if (family.recipes[place].micro_batch - smallest.recipe.micro_batch) * growing <= room:
                return place
        return 1

    def _may_fit(self, recipe: Recipe, smallest: Candidate, larger: Candidate) -> bool:
        """Whether a line through the allocated bytes of two smaller ones stays under the limit.

        The peak is the highest of many lines, so it bends upwards and never runs below this one. What is reserved jumps
        by whole segments, and may: it only never is less than what is allocated. The optimizer's state does not count
        where there can be less of it.
        """
        least, more = smallest.recipe.micro_batch, larger.recipe.micro_batch
        before, now = smallest.estimate.peak_allocated_bytes, larger.estimate.peak_allocated_bytes
        expected = now + (now - before) / (more - least) * (recipe.micro_batch - more)
        spare = _state(smallest) if self.lighter(recipe) is not None else 0
        return self.context_bytes + expected - spare <= self.available_bytes

    def _may_be_quicker(self, smaller: Recipe, best: Candidate) -> bool:
        """A card takes no less than half the time for half the rows, so only padding speaks for fewer."""
        return not self.gpu or self.padding(smaller.micro_batch) < LESS_PADDING * self.padding(best.recipe.micro_batch)

    def _try(self, recipe: Recipe) -> Candidate:
        if recipe not in self.found:
            self.found[recipe] = self._rehearsed(recipe)
        return self.found[recipe]

    def _rehearsed(self, recipe: Recipe) -> Candidate:
        estimate = self.estimate(recipe)
        if recipe.streamed_layers and self.ram_bytes is not None and estimate.ram_to_train > self.ram_bytes:
            estimate = replace(estimate, fits="no")
        rows = recipe.micro_batch * estimate.num_gpus
        row_s = estimate.step_time_s.middle / rows * self.padding(recipe.micro_batch)
        return Candidate(recipe, estimate, row_s)


def _state(candidate: Candidate) -> float:
    """Bytes that go with its optimizer's state, at most."""
    return ROUNDED * candidate.estimate.components.get("optimizer", 0)
