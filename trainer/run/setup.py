"""From a Job to what training starts from: weights, data and model. The gates that can refuse a job are passed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError
from autoft.trainer.checks.gates import check_data, check_model
from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.data.tokens import model_stop_ids, stop_ids
from autoft.trainer.evaluation.open_adapter import AdapterFolder, check_settings, open_adapter, refuse_to_continue
from autoft.trainer.events import Listener, Note, Stage
from autoft.trainer.job import Job
from autoft.trainer.runtime import environment
from autoft.trainer.runtime.peak_memory import resident_bytes
from autoft.trainer.sources.new_tokens import pieces_of
from autoft.trainer.sources.resolve import ModelRef, fetch, load_config, resolve

if TYPE_CHECKING:
    from autoft.trainer.model.shared_host import SharedHost


@dataclass(frozen=True, slots=True)
class Sources:
    """What a model is made of and trained on: its weights on the disk, and the data."""

    ref: ModelRef
    weights: Path
    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that training starts from. baseline_bytes: resident size of the process before the model was there."""

    ref: ModelRef
    weights: Path
    prepared: Prepared
    model: Any
    stop_ids: list[int]
    baseline_bytes: int


def adapter_to_continue(job: Job) -> AdapterFolder | None:
    """The adapter that the job begins with, as the job's recipe describes it; None where a new one begins.

    Raises: ModelError.
    """
    if job.from_adapter is None:
        return None
    adapter = open_adapter(Path(job.from_adapter).expanduser())
    refuse_to_continue(adapter)
    check_settings(adapter, job, where="the plan")
    return adapter


def find_sources(job: Job, tell: Listener, prepared: Prepared | None = None) -> Sources:
    """Weights, downloaded where they are not here, and data. prepared: the data, if the caller has them already.

    Raises: DataError, ModelError, OptionError.
    """
    if job.data is None:
        raise DataError("the plan names no data to train on", fix="--data FILE")
    tell(Stage(name="model", detail=job.model))
    ref = resolve(job.model)
    weights = fetch(ref, lambda text: tell(Note(text=text)))
    if prepared is None or prepared.longest_tokens > job.recipe.seq_len:
        prepared = prepare(
            ref,
            job.data,
            job.eval_data,
            eval_rows=job.eval_rows,
            max_tokens=job.recipe.seq_len,
            mapping=job.mapping,
            thinking=job.thinking,
            new_tokens=job.recipe.new_tokens,
        )
    for note in prepared.notes(job.recipe.seq_len):
        tell(Note(text=note))
    check_data(prepared, job)
    return Sources(ref, weights, prepared)


def load(
    job: Job, sources: Sources, check: Callable[[], None] = lambda: None, shared: SharedHost | None = None
) -> Loaded:
    """The model, ready to be trained. check: called before and after what takes long, to stop there. shared: as
    `build_model` has it."""
    check()
    from autoft.trainer.model.build import build_model

    environment.quiet()
    ref, weights, prepared = sources.ref, sources.weights, sources.prepared
    pieces = pieces_of(ref, job.recipe.new_tokens)
    baseline = resident_bytes()
    config = load_config(ref, weights)
    model = build_model(
        job.recipe, config=config, weights=weights, device=job.device, seed=job.seed, shared=shared, pieces=pieces
    )
    check_model(model, prepared, job)
    check()
    stops = stop_ids(prepared.tokenizer, (*prepared.stops, *model_stop_ids(model)))
    return Loaded(ref, weights, prepared, model, stops, baseline)
