"""Which models of a family fit? Those of the catalogue, each planned for the target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from autoft.errors import ModelError, OptionError, near
from autoft.planner.estimate import Range
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.search.parallel import spread
from autoft.planner.what_if.context import Frame
from autoft.profiles.model_catalogue import ModelProfile, model_profiles
from autoft.schema import Record
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import hub_name, load_config, resolve

# Where a family's name ends: a size ("7b", "8x7b", "270m", "e2b") or a month ("0425")
NOT_FAMILY = re.compile(r"(\d+x|e)?\d+(\.\d+)?[bm]\d?|\d+b\d+|\d{4}")
# What two models of one architecture differ in without differing in a step
WORDS_OF_CONFIG = re.compile(r".*_token_id|architectures|use_cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFit(Record):
    """The plan's choice for one model, or the recipe that comes closest where fits is "no".

    fits "refused": no recipe can train it, `reason` says why. over_bytes: what the closest needs more than can be used.
    run_time_s, run_energy_kwh: of the whole run, without data of a million tokens.
    """

    model: str
    params: int | None = None
    fits: Literal["yes", "no", "refused"]
    recipe: Recipe | None = None
    device_bytes: int | None = None
    available_bytes: int | None = None
    over_bytes: int | None = None
    tokens_per_s: float | None = None
    run_time_s: Range | None = None
    run_energy_kwh: Range | None = None
    reason: str | None = None


def sweep_models(frame: Frame, models: Sequence[ModelProfile]) -> list[ModelFit]:
    """One ModelFit a model, the smallest first."""
    same: dict[str, list[ModelProfile]] = {}  # a base model and its instruct form are one question
    for profile in models:
        same.setdefault(_architecture(profile), []).append(profile)
    # PyTorch's threads, which a CPU's estimate times and counts, do not survive a fork
    alone = frame.target.device == "cpu"
    first = [profiles[0].name for profiles in same.values()]
    answers = spread(lambda model: _fit(frame, model), first, alone=alone, fewest=1)
    fits = [
        ModelFit.from_dict({**answer.to_dict(), "model": profile.name})
        for profiles, answer in zip(same.values(), answers, strict=True)
        for profile in profiles
    ]
    sizes = {profile.name: profile.parameters or 0 for profile in models}
    return sorted(fits, key=lambda fit: (fit.params or sizes[fit.model], fit.model))


def family_of(name: str) -> str:
    """What comes before the size in a model's name: "qwen2.5" of qwen2.5-3b-instruct, "gemma-3" of gemma-3-12b-it.

    Of a name without a size the letters that it begins with: "phi" of phi-3.5-mini-instruct.
    """
    words = name.casefold().split("/")[-1].split("-")
    for number, word in enumerate(words):
        if number and NOT_FAMILY.fullmatch(word):
            return "-".join(words[:number])
    return re.match(r"[a-z]*", words[0])[0] or words[0]  # type: ignore[index]


def members(model: str, family: str | None = None) -> tuple[str, list[ModelProfile]]:
    """(the family's name, its models). family: or the beginning of several ("qwen"); None is that of `model`.

    Raises: OptionError where the catalogue has none of it.
    """
    ref = resolve(model)
    own = ref.profile.name if ref.profile else hub_name(ref) or (ref.path.name if ref.path else model)
    known = model_profiles()
    for name in [family.casefold()] if family else _shorter(family_of(own)):
        exact = [profile for profile in known.values() if family_of(profile.name) == name]
        models = exact or [p for p in known.values() if re.match(rf"{re.escape(name)}(?![a-z])", p.name)]
        if models:
            return name, models
    families = sorted({family_of(name) for name in known})
    if family:
        raise OptionError(
            f"{family}: no model family of the catalogue.{near(family, families)}",
            fix=f"one of: {', '.join(families)}",
        )
    raise OptionError(
        f"{model}: of no model family in the catalogue",
        fix=f"autoft fit {model} --family with one of: {', '.join(families)}",
    )


def _shorter(family: str) -> Iterator[str]:
    """The family, and what is left as its last words go."""
    words = family.split("-")
    for end in range(len(words), 0, -1):
        yield "-".join(words[:end])


def _architecture(profile: ModelProfile) -> str:
    config = {key: value for key, value in profile.full_config.items() if not WORDS_OF_CONFIG.fullmatch(key)}
    return json.dumps(config, sort_keys=True)


def _fit(frame: Frame, model: str) -> ModelFit:
    try:
        estimator = Estimator(model, load_config(resolve(model)), frame.target)
        mine = frame.of(estimator.without_tight())
        recipe, estimate = mine.best()
    except ModelError as error:
        return ModelFit(model=model, fits="refused", reason=error.what)
    over = estimate.device_bytes - estimate.available_bytes
    run_time_s, run_energy_kwh = mine.run(recipe, estimate)
    return ModelFit(
        model=model,
        params=estimator.shape.total_params,
        fits="yes" if estimate.fits == "yes" else "no",
        recipe=recipe,
        device_bytes=estimate.device_bytes,
        available_bytes=estimate.available_bytes,
        over_bytes=over if over > 0 else None,
        tokens_per_s=estimate.tokens_per_s,
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
    )
