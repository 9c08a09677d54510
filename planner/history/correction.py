"""What runs on this device measured, beside what the plan predicts: a correction that never changes the prediction."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from typing import Any

from autoft.errors import OutputError
from autoft.planner.estimate import Correction, Estimate, Fits, Range, Ratio, Source
from autoft.planner.estimator.target import Target
from autoft.planner.history import past_runs
from autoft.planner.history.past_runs import PastRun
from autoft.profiles.bench_store import THREADS, BenchKey
from autoft.trainer.recipe import Recipe
from autoft.units import duration, size

# Of other recipes so many runs make a median that one odd run does not move; of the very recipe one says something
FEWEST = 3
NEWEST = 9  # of more runs the newest count: drivers and machines change
# Runs are alike where one predicts at most so many times the other: what comes on top of tensors does not scale
LIKE = 2.0
FEWEST_STEPS = 10  # of a shorter run the first step, which compiles and allocates, is too large a part
KERNELS = ("method", "quant_type", "base_dtype")  # fields of the recipe that decide which kernels run
CIRCUMSTANCES = ("cores", *THREADS)


def correction_for(target: Target, estimate: Estimate, recipe: Recipe) -> Correction | None:
    """The Correction of an Estimate from the runs that were made on the target; None where they say nothing of it.

    None, too, for a card that is not of this machine, and where the history cannot be read.
    """
    if target.key is None:
        return None
    try:
        past = past_runs.runs(target.key.device)
    except OutputError:
        return None
    wanted = recipe.to_dict()
    past = [run for run in past if _comparable(run, target.key, estimate) and _kernels(run.recipe) == _kernels(wanted)]
    cuda = target.device == "cuda"

    def same(run: PastRun) -> bool:
        return run.recipe == wanted and run.predicted_peak_bytes == estimate.peak_allocated_bytes

    memory = _ratio(past, same, _reserved if cuda else _allocated, estimate.peak_allocated_bytes)
    timed = [run for run in past if run.time_basis == estimate.time_basis and (run.steps or 0) >= FEWEST_STEPS]
    time = _ratio(timed, same, _step_time, estimate.peak_allocated_bytes)
    exhausted = _exhausted(past, estimate.device_bytes)
    if memory is None and time is None and not exhausted:
        return None
    expected, fits = None, None
    if memory is not None:
        expected, most = (_scaled(estimate, factor, target) for factor in (memory.median, memory.most))
        fits = _fits(expected, most, estimate.available_bytes)
    step = time.seconds(estimate.step_time_s) if time is not None else None
    return Correction(memory=memory, device_bytes=expected, fits=fits, time=time, step_time_s=step, exhausted=exhausted)


def words(correction: Correction, estimate: Estimate, predicted: Range | None = None) -> list[tuple[str, str]]:
    """("memory" | "time", each correction as a sentence that begins with the prediction it is of).

    predicted: the whole run's seconds; None tells of a step.
    """
    lines = []
    if correction.memory is not None and correction.device_bytes is not None:
        expected = f"expect {size(correction.device_bytes)}"
        measured = _measured(correction.memory, "measured", "that")
        lines.append(("memory", f"predicted {size(estimate.device_bytes)}; {measured}: {expected}"))
    if correction.time is not None:
        what, span = ("", predicted) if predicted else (" a step", estimate.step_time_s)
        measured = _measured(correction.time, "took", "the middle of that")
        lines.append(
            ("time", f"predicted {_span(span)}{what}; {measured}: expect {_span(correction.time.seconds(span))}")
        )
    return lines


def warnings(correction: Correction, estimate: Estimate) -> list[str]:
    """What a plan should note: that runs here say it may not fit."""
    lines = []
    if correction.memory is not None and correction.device_bytes is not None and correction.fits != "yes":
        room, expected = size(estimate.available_bytes), size(correction.device_bytes)
        what = f"it may need {expected}, more than the usable {room}"
        if correction.fits == "tight":
            what = f"it may need {expected} or more, up to {correction.memory.most:.2f} times the prediction, of {room}"
        lines.append(f"memory: going by {_runs(correction.memory)} {what}")
    if correction.exhausted:
        newest = correction.exhausted[0][:10]
        lines.append(f"memory: a run predicted to need no more than this ran out of memory here on {newest}")
    return lines


def _comparable(run: PastRun, key: BenchKey, estimate: Estimate) -> bool:
    """Whether device, number of GPUs, cores, threads and the releases of all libraries are as they are now."""
    return (
        run.circumstances.get(past_runs.GPUS, "1") == str(estimate.num_gpus)
        and (run.device, run.device_name) == (key.device, key.name)
        and all(run.circumstances.get(name) == key.circumstances.get(name) for name in CIRCUMSTANCES)
        and _releases(run.versions) == _releases(past_runs.installed())
    )


def _releases(versions: dict[str, str]) -> dict[str, str]:
    """The first two numbers of each: what comes after them mends and changes neither memory nor speed."""
    return {name: ".".join(re.findall(r"\d+", version)[:2]) for name, version in versions.items()}


def _kernels(recipe: dict[str, Any]) -> list[Any]:
    return [recipe.get(name) for name in KERNELS]


def _ratio(
    past: list[PastRun],
    same: Callable[[PastRun], bool],
    ratio_of: Callable[[PastRun], float | None],
    predicted_bytes: int,
) -> Ratio | None:
    """Of the runs of the very recipe if there are any, else of those alike in size if there are enough."""
    of_runs = [(run, ratio) for run in past if (ratio := ratio_of(run))]
    chosen = [(run, ratio) for run, ratio in of_runs if same(run)]
    same_recipe = bool(chosen)
    if not same_recipe:
        chosen = [(run, ratio) for run, ratio in of_runs if _alike(run.predicted_peak_bytes or 0, predicted_bytes)]
        if len(chosen) < FEWEST:
            return None
    chosen = chosen[:NEWEST]
    ratios = [ratio for _, ratio in chosen]
    return Ratio(
        median=statistics.median(ratios),
        least=min(ratios),
        most=max(ratios),
        same_recipe=same_recipe,
        sources=tuple(Source(at=run.at, model=run.model, ratio=ratio) for run, ratio in chosen),
    )


def _alike(one: int, other: int) -> bool:
    return max(one, other) <= LIKE * min(one, other)


def _allocated(run: PastRun) -> float | None:
    return _over(run.measured_peak_bytes, run.predicted_peak_bytes)


def _reserved(run: PastRun) -> float | None:
    return _over(run.measured_reserved_bytes, run.predicted_reserved_bytes)


def _step_time(run: PastRun) -> float | None:
    lower, upper = run.predicted_step_lower_s, run.predicted_step_upper_s
    if lower is None or upper is None or not 0 < lower <= upper:
        return None
    return _over(run.measured_step_s, Range(lower=lower, upper=upper).middle)


def _over(figure: float | None, other: float | None) -> float | None:
    known = figure is not None and other is not None and 0 < figure < math.inf and 0 < other < math.inf
    return figure / other if known else None  # type: ignore[operator]


def _exhausted(past: list[PastRun], device_bytes: int) -> tuple[str, ...]:
    """When runs predicted to need no more than `device_bytes` ran out of memory, and none that needs as much went well
    after them."""
    dates = []
    proven = 0  # the most that a run, of those seen so far, was predicted to need and got
    for run in past:
        predicted = run.predicted_device_bytes
        if predicted is None:
            continue
        if run.finished:
            proven = max(proven, predicted)
        elif proven < predicted <= device_bytes:
            dates.append(run.at)
    return tuple(dates[:NEWEST])


def _scaled(estimate: Estimate, factor: float, target: Target) -> int:
    """What PyTorch takes is scaled, a GPU's context is not."""
    context = target.device_bytes(0, estimate.num_gpus)
    return context + round((estimate.device_bytes - context) * factor)


def _fits(expected: int, most: int, available: int) -> Fits:
    if most <= available:
        return "yes"
    return "tight" if expected <= available else "no"


def _runs(ratio: Ratio) -> str:
    number = len(ratio.sources)
    return f"{number} run{'s' * (number > 1)} {'of this recipe ' * ratio.same_recipe}here"


def _measured(ratio: Ratio, verb: str, what: str) -> str:
    spread = f" ({ratio.least:.2f} to {ratio.most:.2f})" if len(ratio.sources) > 1 else ""
    return f"{_runs(ratio)} {verb} {ratio.median:.2f} times {what}{spread}"


def _span(seconds: Range) -> str:
    lower, upper = duration(seconds.lower), duration(seconds.upper)
    return lower if lower == upper else f"{lower} to {upper}"
