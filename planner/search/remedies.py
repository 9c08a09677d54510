"""When nothing fits: what was closest, and what would help. Each way out has been rehearsed, not guessed.

A way out is tried with the recipe of each base that saves most memory: what fits then is told, with what that needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from autoft.errors import AutoftError, DoesNotFit, InputError, OptionError
from autoft.planner.estimate import Estimate
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of_profile, usable_bytes
from autoft.planner.search.candidates import describe, describe_base
from autoft.planner.search.problem import Limits, Question
from autoft.planner.search.search import Candidate, Search
from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.profiles.model_catalogue import ModelProfile, model_profiles
from autoft.trainer.recipe import PAD_MULTIPLE
from autoft.trainer.sources.resolve import load_config, resolve
from autoft.units import count, size

SHORTEST = 128  # tokens: less holds hardly a question with its answer
MOST_MODELS, MOST_CARDS = 6, 4  # that are rehearsed in search of one that fits
LEAST_BYTES = 0.5  # of a weight, in 4 bits


@dataclass(frozen=True, slots=True)
class Remedy:
    """what: for people. option: for the command line, None where it is not a matter of options. needs_bytes: then."""

    what: str
    option: str | None
    needs_bytes: int


def nothing_fits(question: Question, found: Search, words: dict[str, str]) -> AutoftError:
    """The error that says so. words: how the user pinned the fields of question.pinned, by field.

    DoesNotFit with the closest candidate, what it misses and where, and the ways out; OptionError where two of the
    user's own words exclude each other and either without the other would do.
    """
    free = [(word, fit) for word, looser in _looser(question, words) if (fit := _least(looser)) is not None]
    if len(free) > 1:
        (first, without_first), (second, without_second) = free[:2]
        return OptionError(
            f"{first} and {second} exclude each other on {question.target.name}",
            fix=f"leave out {first} ({_needs(without_first)}) or {second} ({_needs(without_second)})",
        )
    least = question.least()
    if not least.found:  # the weights alone are too much
        least.least([min(reversed(question.families()), key=lambda f: question.weights_bytes(f.recipes[0]))])
    closest = min((found.found | least.found).values(), key=lambda c: c.estimate.device_bytes)
    ways = [Remedy(f"without {word}: {_needs(c)}", None, c.estimate.device_bytes) for word, c in free]
    ways += _ways_out(question, closest)
    return _error(question, closest, ways)


def _error(question: Question, closest: Candidate, ways: list[Remedy]) -> DoesNotFit:
    room = question.target.available_bytes
    what = f"nothing fits {question.target.name}, {size(room)} usable"
    details: dict[str, Any] = {
        "available_bytes": room,
        "remedies": [{"what": w.what, "option": w.option, "needs_bytes": w.needs_bytes} for w in ways],
    }
    limits = [word for word in (_hours(question.limits), _energy(question.limits)) if word]
    if closest.estimate.fits == "yes" and limits:
        what = f"what fits {question.target.name} may take longer than allowed ({', '.join(limits)})"
    else:
        need, phases = closest.estimate.device_bytes, closest.estimate.phases
        phase = max(phases, key=lambda name: phases[name])
        missing = f"{size(need)}, {size(need - room)} too much (peak: {phase.replace('_', ' ')})"
        if need <= room:
            missing = _ram(closest.estimate, question.whole.ram_bytes or 0)
        what += f". Closest: {describe(closest.recipe)}, {missing}"
        if question.whole.num_gpus > 1:
            what += ". More GPUs do not help: each has the whole model"
        details |= {
            "closest": closest.recipe.to_dict(),
            "needs_bytes": need,
            "missing_bytes": need - room,
            "phase": phase,
        }
    fix = "; or ".join(way.what for way in ways) or "a smaller model, or a card with more memory"
    return DoesNotFit(what, fix=fix, details=details)


def _ram(estimate: Estimate, free: int) -> str:
    """Of streamed layers, what is missing of the host's memory."""
    need = estimate.ram_to_train
    return f"which needs {size(need)} of host RAM, {size(need - free)} more than is free"


def _looser(question: Question, words: dict[str, str]) -> Iterator[tuple[str, Question]]:
    """The question without one thing that the user has set, and what that was."""
    for name, word in words.items():
        yield word, replace(question, pinned={k: v for k, v in question.pinned.items() if k != name})
    limits = question.limits
    if limits.memory_gib is not None:
        unlimited = replace(question, limits=replace(limits, memory_gib=None)).on(question.whole)
        yield f"--max-memory {limits.memory_gib:g}", unlimited
    for told, kept in (
        (_hours(limits), replace(limits, hours=None)),
        (_energy(limits), replace(limits, energy_kwh=None)),
    ):
        if told is not None:
            yield told, replace(question, limits=kept)


def _hours(limits: Limits) -> str | None:
    return None if limits.hours is None else f"--max-hours {limits.hours:g}"


def _energy(limits: Limits) -> str | None:
    return None if limits.energy_kwh is None else f"--max-energy-kwh {limits.energy_kwh:g}"


def _least(question: Question) -> Candidate | None:
    """What fits with the least memory and keeps to the limits, None if nothing does.

    Under a limit of time or energy the plan itself: what needs the least memory is the slowest.
    """
    try:
        if (question.limits.hours, question.limits.energy_kwh) != (None, None):
            search = question.search()
            choice = question.choose(search)
            return None if choice is None else search.found[choice.recipe]
        rehearsed = question.least().found.values()
    except InputError:
        return None
    fitting = [candidate for candidate in rehearsed if candidate.estimate.fits == "yes"]
    return min(fitting, key=lambda candidate: candidate.estimate.device_bytes, default=None)


def _needs(candidate: Candidate) -> str:
    return f"{describe_base(candidate.recipe)} fits, from {size(candidate.estimate.device_bytes)}"


def _ways_out(question: Question, closest: Candidate) -> Iterator[Remedy]:
    """The cheapest first: what is open on the card, a shorter sequence, a smaller model, another card."""
    if closest.estimate.fits != "yes":
        yield from _closing_processes(question)
        yield from _shorter(question, closest)
    yield from _smaller_model(question)
    if question.target.device == "cuda":
        yield from _another_card(question, closest)


def _closing_processes(question: Question) -> Iterator[Remedy]:
    gpu = question.target.gpu
    if gpu is None or not gpu.processes:
        return
    held = sum(process.used_bytes or 0 for process in gpu.processes)
    freed = min(gpu.total_bytes, gpu.free_bytes + held)
    least = _least(question.on(replace(question.whole, available_bytes=usable_bytes(freed))))
    if least is not None:
        holders = sorted(gpu.processes, key=lambda p: -(p.used_bytes or 0))[:3]
        names = ", ".join(f"{p.name or 'process'} ({p.pid})" for p in holders)
        yield Remedy(f"close {names}, which hold {size(held)} of the card", None, least.estimate.device_bytes)


def _shorter(question: Question, closest: Candidate) -> Iterator[Remedy]:
    """The longest sequence at which the closest fits, found by halving; what is longer is left out of the data."""

    def fitting(tokens: int) -> Estimate | None:
        estimate = question.estimate(replace(closest.recipe, seq_len=tokens))
        return estimate if estimate.fits == "yes" else None

    if question.weights_bytes(closest.recipe) > question.target.available_bytes:
        return
    stretched = "rope_scaling" in question.pinned  # which is for more than the model's own context
    shortest = question.estimator.shape.max_position + PAD_MULTIPLE if stretched else SHORTEST
    low, high = shortest // PAD_MULTIPLE, question.seq_len // PAD_MULTIPLE
    best = fitting(low * PAD_MULTIPLE) if low < high else None
    if best is None:
        return
    step = max(1, (high - low) // 16)
    while high - low > step:
        middle = (low + high) // 2
        estimate = fitting(middle * PAD_MULTIPLE)
        low, high, best = (middle, high, estimate) if estimate else (low, middle, best)
    tokens = low * PAD_MULTIPLE
    left_out = ""
    if question.rows is not None and not question.rows.packing:
        left_out = f", leaving out {sum(length > tokens for length in question.rows.lengths):,} rows"
    need = best.device_bytes
    yield Remedy(f"--seq-len {tokens} (needs {size(need)}{left_out})", f"--seq-len {tokens}", need)


def _smaller_model(question: Question) -> Iterator[Remedy]:
    """The largest of the same family in the catalogue that fits."""
    shape = question.estimator.shape
    smaller = sorted(
        (
            profile
            for profile in model_profiles().values()
            if profile.config["model_type"] == shape.model_type
            and (profile.parameters or 0) < shape.total_params
            and (profile.parameters or 0) * LEAST_BYTES <= question.target.available_bytes
        ),
        key=lambda profile: (-_likeness(profile, shape.name), -(profile.parameters or 0)),
    )
    for profile in smaller[:MOST_MODELS]:
        estimator = Estimator(profile.name, load_config(resolve(profile.name)), question.target)
        if estimator.shape.max_position < question.seq_len:
            continue
        least = _least(replace(question, estimator=estimator, run_takes_memo={}))
        if least is not None:
            need = least.estimate.device_bytes
            what = f"{profile.name} ({count(estimator.shape.total_params)} weights, from {size(need)})"
            yield Remedy(what, profile.name, need)
            return


def _likeness(profile: ModelProfile, name: str) -> int:
    """How many words its name shares with `name`: an instruct model is not replaced by a base model."""
    words = set(re.split(r"[-_/. ]", name.casefold()))
    return len(words & set(re.split(r"[-_/. ]", profile.name.casefold())))


def _another_card(question: Question, closest: Candidate) -> Iterator[Remedy]:
    """The card of the catalogue with the least memory that fits."""
    tried, room = 0, max(question.whole.available_bytes, closest.estimate.device_bytes - 1)
    for profile in sorted(gpu_profiles().values(), key=lambda p: (p.memory_bytes, p.name)):
        if profile.vendor != "nvidia":  # the trainer runs on no other
            continue
        target = target_of_profile(profile.name)
        if target.available_bytes <= room or tried == MOST_CARDS:
            continue
        tried, room = tried + 1, target.available_bytes
        least = _least(question.on(target))
        if least is not None:
            need = least.estimate.device_bytes
            card = profile.name if question.num_gpus == 1 else f"{profile.name}x{question.num_gpus}"
            yield Remedy(f"a larger card: {card} (from {size(need)} there)", f"--gpu {card}", need)
            return
