"""What one exact recipe takes: `make_estimate` to train with it, `make_serving` to answer with what it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from autoft.errors import OptionError
from autoft.planner.estimate import Estimate, ServingEstimate
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import Target, target_of_request
from autoft.planner.rehearsal.answering import answering
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.request import Request
from autoft.planner.search.candidates import exact
from autoft.planner.search.new_tokens import with_token_ids
from autoft.planner.search.preset import Defaults
from autoft.planner.search.sequence_length import check_length, longest_row
from autoft.planner.search.set_option import parse_settings
from autoft.planner.timing.allreduce import ALONE, Replicas
from autoft.planner.workload import Workload
from autoft.profiles.hardware import Hardware
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import PAD_MULTIPLE, Recipe, RopeScaling
from autoft.trainer.sources.resolve import load_config, resolve

DEFAULT_SEQ_LEN = 2048  # without data to look at


@dataclass(frozen=True, slots=True)
class Answer:
    """An Estimate, and all that it was read from."""

    recipe: Recipe
    estimate: Estimate
    target: Target
    estimator: Estimator
    rehearsal: Rehearsal


def make_estimate(request: Request, hardware: Hardware) -> Answer:
    """The Recipe that the settings describe, the device's defaults filled in, and its Estimate.

    Raises: InputError.
    """
    estimator, recipe, _ = _exact(request, hardware)
    target = estimator.target
    replicas = ALONE if request.gpu is None else Replicas(target.num_gpus)
    rehearsal = estimator.rehearse(recipe, replicas=replicas)
    estimate = estimator.with_kernels(recipe, estimator.estimate_of(recipe, rehearsal, replicas=replicas), replicas)
    others = estimator.fits_by_gib(rehearsal, estimate.device_bytes, num_gpus=replicas.num_gpus)
    return Answer(recipe, replace(estimate, fits_by_gib=others), target, estimator, rehearsal)


def make_serving(request: Request, hardware: Hardware, adapters: int | None) -> tuple[Recipe, ServingEstimate, Target]:
    """The Recipe that the settings describe, and the memory to answer with that many of its adapters.

    adapters: None for 1, or for none where all weights are trained. Raises: InputError.
    """
    estimator, trained, pinned = _exact(request, hardware)
    target, recipe = estimator.target, answering(trained)
    if adapters is None:
        adapters = 0 if recipe.method == "full" else 1
    if adapters and recipe.method == "full":
        raise OptionError(f"--adapters {adapters}: method full trains no adapter", fix="leave out --adapters")
    if request.gpu is not None and target.num_gpus > 1:
        raise OptionError(f"--gpu {request.gpu}: --serve uses one GPU", fix="name one GPU")
    vain = [name for name in pinned if getattr(trained, name) != getattr(recipe, name)]
    if vain:
        raise OptionError(f"--serve: {vain[0]} only matters in training", fix=f"leave out {vain[0]}")
    return recipe, estimator.serving(recipe, adapters), target


def _exact(request: Request, hardware: Hardware) -> tuple[Estimator, Recipe, tuple[str, ...]]:
    """(estimator of the model on the device, the recipe that the settings describe, the fields that they pin).

    Raises: InputError.
    """
    pins, job_pins = parse_settings(request.settings)
    if job_pins:
        raise OptionError(
            f"--set {next(iter(job_pins))}: not a setting of the recipe",
            fix="use it with `autoft plan` or `autoft run`",
        )
    ref, target = resolve(request.model), target_of_request(request, hardware)
    pins = with_token_ids(pins, ref)
    estimator = Estimator(request.model, load_config(ref), target)
    seq_len = pinned_length(request, pins)
    scaling = pins.get("rope_scaling")
    seq_len = seq_len or seq_len_for(None, estimator.shape, Defaults(), scaling)
    check_length(seq_len, estimator, scaling, word=f"--seq-len {seq_len}", error=OptionError)
    recipe = exact(target, seq_len=seq_len, attention=estimator.attention, pinned=pins)
    return estimator, recipe, tuple(pins)


def pinned_length(request: Request, pins: dict[str, Any]) -> int | None:
    """seq_len as --seq-len or --set has it, taken out of the pins. Raises: OptionError when they differ."""
    length: int | None = pins.pop("seq_len", None)
    if None not in (length, request.seq_len) and length != request.seq_len:
        raise OptionError(f"--seq-len {request.seq_len} and --set seq_len={length} differ", fix="remove one of them")
    return request.seq_len or length


def seq_len_for(workload: Workload | None, shape: ModelShape, preset: Defaults, scaling: RopeScaling | None) -> int:
    """Room for the longest row, so that none is cut, and for as many tokens as the preset packs into one.

    Without data the preset's length, else DEFAULT_SEQ_LEN; never more than the model takes. With a scaling twice that.
    """
    most = longest_row(shape, scaling)
    if workload is None:
        return min(preset.seq_len or DEFAULT_SEQ_LEN, most) if scaling is None else 2 * shape.max_position
    rounded = -(-workload.longest_tokens // PAD_MULTIPLE) * PAD_MULTIPLE
    return min(max(rounded, preset.seq_len or 0) if preset.packing else rounded, most)
