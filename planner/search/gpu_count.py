"""On how many of the GPUs? Each count that shares out a step's rows evenly is planned, and the quickest one taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoft.errors import OptionError
from autoft.planner.alternative import Alternative
from autoft.planner.estimator.target import Target, several
from autoft.planner.facts import Reason
from autoft.planner.search import words
from autoft.planner.search.problem import Question
from autoft.planner.search.rank import Choice, alternative, order, row_time, times
from autoft.planner.search.search import Candidate, Search
from autoft.units import pace


@dataclass(frozen=True, slots=True)
class Tried:
    """The question for one count of GPUs, and what came of it; choice None where nothing fits."""

    question: Question
    search: Search
    choice: Choice | None

    @property
    def best(self) -> Candidate | None:
        return None if self.choice is None else self.search.found[self.choice.recipe]


def counts_of(question: Question, wanted: int | None) -> list[int]:
    """The numbers of GPUs to plan for: those that leave the step its rows. wanted: the one that the user has set.

    Raises: OptionError where there are not as many.
    """
    target, rows = question.whole, question.rows_per_step
    if wanted is not None:
        _refuse_more(target, wanted)
        return [wanted]
    if target.hosts > 1:
        return [target.num_gpus]  # whoever names several hosts wants them all
    micro_batch: int = question.pinned.get("micro_batch", 1)

    def in_step(num_gpus: int) -> int:
        return num_gpus * micro_batch * max(1, rows // num_gpus // micro_batch)

    return [n for n in range(1, target.num_gpus + 1) if rows % n == 0 and in_step(n) == in_step(1)] or [1]


def plan_counts(question: Question, counts: Sequence[int]) -> tuple[Tried, list[Tried]]:
    """(the count to take, all that were tried).

    More GPUs are taken where a row takes less time with them, and the preference puts nothing else first. Where
    nothing fits, the first count.
    """
    tried = []
    for num_gpus in counts:
        here = question.spread(num_gpus)
        search = here.search()
        tried.append(Tried(here, search, here.choose(search)))
    taken, best = tried[0], tried[0].best
    for other in tried[1:]:
        choice = other.best
        if choice is None:
            continue
        prefer = question.prefer
        if best is None or (order(choice, prefer) < order(best, prefer) and row_time(choice) < row_time(best)):
            taken, best = other, choice
    return taken, tried


def with_counts(taken: Tried, tried: Sequence[Tried], name: str) -> Choice:
    """The choice with what speaks for its number of GPUs, and the other numbers among the alternatives.

    name: of the card.
    """
    choice, best = taken.choice, taken.best
    assert choice is not None
    assert best is not None
    others = [other.best for other in tried if other is not taken and other.best is not None]
    return replace(
        choice,
        reasons=(*_reasons(best, others, taken.question, name), *choice.reasons),
        alternatives=(*(_other(other, best) for other in others), *choice.alternatives),
    )


def notes_of(question: Question, counts: Sequence[int], wanted: int | None) -> list[str]:
    """What to know of GPUs that no plan takes, and of a batch that is not the planned one."""
    most, rows, there = counts[-1], question.rows_per_step, question.whole.num_gpus
    in_step = most * max(1, rows // most)
    if wanted is not None and in_step != rows:
        return [f"num_gpus={most}: a step has {in_step} rows instead of {rows}, as many for each GPU"]
    if wanted is None and most < there:
        return [f"{most} of the {there} GPUs are used at most: more would not share out a step's {rows} rows evenly"]
    return []


def _reasons(best: Candidate, others: list[Candidate], question: Question, name: str) -> list[Reason]:
    num_gpus = question.num_gpus
    one = next((other for other in others if other.estimate.num_gpus == 1), None)
    more = min((other for other in others if other.estimate.num_gpus > num_gpus), key=row_time, default=None)
    if num_gpus == 1:
        return [] if more is None else [words.one_gpu(more.estimate.num_gpus, more.recipe, times(more, best))]
    rows = best.recipe.micro_batch * question.replicas(best.recipe).accumulation
    beside = None if one is None else (one.recipe, times(best, one))
    place = several(num_gpus, name, question.whole.hosts)
    return [words.several_gpus(place, num_gpus, rows, beside)]


def _other(other: Candidate, best: Candidate) -> Alternative:
    time_ratio = times(other, best)
    return alternative("runner_up", other, f"fits: {pace(time_ratio)}", time_ratio)


def _refuse_more(target: Target, wanted: int) -> None:
    there = target.num_gpus
    if target.device == "cuda" and wanted > there:
        raise OptionError(
            f"--set num_gpus={wanted}: planned for {several(there, target.name, target.hosts)}",
            fix=f"--set num_gpus={there}, or --gpu 'NAME x{wanted}' for cards that are not here",
        )
    if wanted % target.hosts:
        raise OptionError(
            f"--set num_gpus={wanted}: not as many on each of {target.hosts} hosts",
            fix=f"--set num_gpus={target.hosts * max(1, wanted // target.hosts)}",
        )
