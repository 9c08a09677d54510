"""One run: load, evaluate, train, evaluate again, save."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.errors import DataError, OutOfMemory, TrainingError
from autoft.home import sha256, write_text
from autoft.trainer import environment
from autoft.trainer.card import model_card
from autoft.trainer.data.pack import pack
from autoft.trainer.data.tokens import model_stop_ids, stop_ids
from autoft.trainer.events import Listener, Note, Progress, Stage
from autoft.trainer.job import Job
from autoft.trainer.memory import PeakMemory, resident_bytes
from autoft.trainer.output import RESULT, check_output, output_folder
from autoft.trainer.prepare import Prepared, prepare
from autoft.trainer.recipe import Recipe
from autoft.trainer.resolve import ModelRef, base_reference, fetch, hub_name, licence, load_config, resolve
from autoft.trainer.result import Evaluation, Measured, Predicted, RunResult, Sample

SMALL_FILES_BYTES = 2**26  # assumption: tokenizer, card and the rest beside the adapter
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """All that training starts from. baseline_bytes: resident size of the process before the model was there."""

    ref: ModelRef
    weights: Path
    prepared: Prepared
    model: Any
    stop: list[int]
    baseline_bytes: int


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What training left beside the trained model."""

    losses: tuple[tuple[int, float], ...]
    tokens: int
    trained_tokens: int
    measured: Measured


def run(
    job: Job,
    out: Path,
    *,
    plan_toml: str,
    predicted: Predicted | None = None,
    prepared: Prepared | None = None,
    force: bool = False,
    listener: Listener = lambda _: None,
) -> RunResult:
    """Train `job` and write the folder `out`.

    plan_toml: text of the plan.toml that goes with the run. prepared: the job's data, if the caller has it already.
    Raises: InputError of many kinds before training; TrainingError when training goes wrong. `out` is then as it was.
    """
    clock = _Clock()
    check_output(out, force=force)
    with _told_of_exhausted_memory(job):
        with clock("load"):
            loaded = _load(job, prepared, listener)
        needed_bytes = output_bytes(_trainable_params(loaded.model), bytes_each=_widest_trained(loaded.model))
        with output_folder(out, force=force, needed_bytes=needed_bytes) as folder:
            write_text(folder / "plan.toml", plan_toml)
            with clock("evaluate_before"):
                before, answers_before = _evaluate(job, loaded, "before training", listener)
            with clock("train"):
                learnt = _train(job, loaded, folder, listener)
            with clock("evaluate_after"):
                after, answers_after = _evaluate(job, loaded, "after training", listener)
            with clock("save"):
                listener(Stage(name="save"))
                _save(loaded, job.recipe, folder)
            sample = _sample(loaded.prepared, answers_before, answers_after)
            result = _result(job, loaded, learnt, predicted, before, after, sample, clock.seconds)
            card = model_card(result, out.name, hub_name(loaded.ref), licence(loaded.ref))
            write_text(folder / "README.md", card)
            result = replace(result, artifacts=_hashes(folder))
            write_text(folder / RESULT, json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return result


def output_bytes(trainable_params: int, *, bytes_each: int = 4) -> int:
    """What a run writes: the trained weights, adapter or model, and the small files beside them.

    bytes_each: of a weight; no dtype that is trained has more than four.
    """
    return bytes_each * trainable_params + SMALL_FILES_BYTES


def _load(job: Job, prepared: Prepared | None, listener: Listener) -> _Loaded:
    """Weights, data and model; every gate that can refuse the job is passed here."""
    if job.data is None:
        raise DataError("the plan names no data to train on", fix="--data FILE")
    listener(Stage(name="model", detail=job.model))
    ref = resolve(job.model)
    weights = fetch(ref, lambda text: listener(Note(text=text)))
    if prepared is None or prepared.longest_tokens > job.recipe.seq_len:
        prepared = prepare(
            ref,
            job.data,
            job.eval_data,
            eval_rows=job.eval_rows,
            max_tokens=job.recipe.seq_len,
            mapping=job.mapping,
        )
    for note in prepared.notes(job.recipe.seq_len):
        listener(Note(text=note))
    from autoft.trainer.build import build_model

    environment.quiet()
    baseline = resident_bytes()
    model = build_model(job.recipe, config=load_config(ref, weights), weights=weights, device=job.device, seed=job.seed)
    return _Loaded(ref, weights, prepared, model, stop_ids(prepared.tokenizer, model_stop_ids(model)), baseline)


def _evaluate(job: Job, loaded: _Loaded, when: str, listener: Listener) -> tuple[Evaluation, list[str]]:
    from autoft.trainer.evaluate import evaluate

    listener(Stage(name="evaluate", detail=when))
    return evaluate(
        loaded.model,
        loaded.prepared.tokenizer,
        loaded.prepared.splits.heldout,
        loaded.prepared.heldout,
        job.recipe,
        max_new_tokens=job.max_new_tokens,
        stop=loaded.stop,
        tick=lambda done, total: listener(Progress(done=done, total=total)),
    )


def _train(job: Job, loaded: _Loaded, folder: Path, listener: Listener) -> _Learnt:
    from autoft.trainer.engine import Engine, Watch

    examples = loaded.prepared.train.examples
    listener(Stage(name="train", detail=f"{len(examples):,} rows"))
    lengths = [len(example.input_ids) for example in examples]
    rows = len(pack(lengths, job.recipe.seq_len)) if job.recipe.packing else len(lengths)
    mean_tokens = sum(lengths) / rows
    work_dir = folder / ".trainer"
    with PeakMemory(job.device, loaded.baseline_bytes) as memory:
        watch = Watch(listener, memory, mean_tokens * job.recipe.micro_batch * job.accumulation)
        engine = Engine(
            model=loaded.model,
            tokenizer=loaded.prepared.tokenizer,
            job=job,
            examples=examples,
            work_dir=work_dir,
            callback=watch,
        )
        engine.train()
    shutil.rmtree(work_dir, ignore_errors=True)
    if not watch.losses:
        raise TrainingError("no optimizer step was made", fix="more rows or epochs")
    tokens, trained, seconds = int(engine.tokens), int(engine.trained_tokens), sum(watch.step_times_s)
    measured = Measured(
        peak_bytes=memory.peak_bytes,
        peak_reserved_bytes=memory.peak_reserved_bytes,
        step_time_s=seconds / len(watch.step_times_s),
        tokens_per_s=tokens / seconds,
        trained_tokens_per_s=trained / seconds,
    )
    return _Learnt(tuple(watch.losses), tokens, trained, measured)


def _save(loaded: _Loaded, recipe: Recipe, folder: Path) -> None:
    """The adapter, or with method full the whole model, and the tokenizer."""
    if recipe.method == "full":
        loaded.model.config.use_cache = True
        loaded.model.save_pretrained(folder)
    else:
        loaded.model.peft_config["default"].base_model_name_or_path = base_reference(loaded.ref, loaded.weights)
        loaded.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    loaded.prepared.tokenizer.save_pretrained(folder)


def _result(
    job: Job,
    loaded: _Loaded,
    learnt: _Learnt,
    predicted: Predicted | None,
    before: Evaluation,
    after: Evaluation,
    sample: Sample | None,
    seconds: dict[str, float],
) -> RunResult:
    prepared = loaded.prepared
    return RunResult(
        autoft_version=__version__,
        job=job,
        base=base_reference(loaded.ref, loaded.weights),
        finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        steps=len(learnt.losses),
        tokens=learnt.tokens,
        trained_tokens=learnt.trained_tokens,
        rows=len(prepared.splits.train) - len(prepared.train.too_long),
        rows_left_out=len(prepared.train.too_long),
        trainable_params=_trainable_params(loaded.model),
        total_params=_stored_params(loaded.model),
        losses=learnt.losses,
        predicted=predicted,
        measured=learnt.measured,
        before=before,
        after=after,
        sample=sample,
        system_prompt=prepared.splits.system_prompt,
        hardware=_hardware(job.device),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        artifacts={},
        notes=tuple(prepared.notes(job.recipe.seq_len)),
    )


def _trainable_params(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _widest_trained(model: Any) -> int:
    """Bytes of a trained weight, the widest there is."""
    widths: list[int] = [p.element_size() for p in model.parameters() if p.requires_grad]
    return max(widths)


def _stored_params(model: Any) -> int:
    """Weights of the model, each counted once, 4-bit ones by what they stand for and not by their packed bytes."""
    return sum(
        p.quant_state.shape.numel() if getattr(p, "quant_state", None) is not None else p.numel()
        for p in model.parameters()
    )


def _sample(prepared: Prepared, before: list[str], after: list[str]) -> Sample | None:
    """The first held-out conversation."""
    if not after:
        return None
    messages = next(row.messages for row in prepared.splits.heldout if row.messages)
    prompt = messages[-2]["content"] if len(messages) > 1 else ""
    return Sample(prompt=prompt, expected=messages[-1]["content"], before=before[0], after=after[0])


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _hardware(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


@contextmanager
def _told_of_exhausted_memory(job: Job) -> Iterator[None]:
    """Out of memory, in any of its forms, as one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise OutOfMemory(
                f"out of memory on {job.device} at micro-batch {job.recipe.micro_batch}",
                fix="--set micro_batch=1, --set gradient_checkpointing=true, --method qlora or a shorter --seq-len",
            ) from error
        raise


class _Clock:
    """Seconds of each stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - began, 2)
