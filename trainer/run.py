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
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.errors import DataError, TrainingError
from autoft.home import sha256, write_text
from autoft.trainer import environment
from autoft.trainer.card import model_card
from autoft.trainer.data.tokens import stop_ids
from autoft.trainer.events import Listener, Note, Progress, Stage
from autoft.trainer.job import Job
from autoft.trainer.memory import PeakMemory, resident_bytes
from autoft.trainer.output import RESULT, check_disk, output_folder
from autoft.trainer.prepare import Prepared, prepare
from autoft.trainer.resolve import base_reference, fetch, hub_name, licence, load_config, resolve
from autoft.trainer.result import Measured, Predicted, RunResult, Sample

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets")


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
    with output_folder(out, force=force) as folder, _told_of_exhausted_memory(job):
        write_text(folder / "plan.toml", plan_toml)
        result = _train(job, folder, predicted, prepared, listener, clock)
        ref = resolve(job.model)
        card = model_card(result, out.name, hub_name(ref), licence(ref))
        write_text(folder / "README.md", card)
        result = _with(result, artifacts=_hashes(folder), seconds=clock.seconds)
        write_text(folder / RESULT, json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return result


def _train(
    job: Job, folder: Path, predicted: Predicted | None, prepared: Prepared | None, listener: Listener, clock: _Clock
) -> RunResult:
    recipe = job.recipe
    if job.data is None:
        raise DataError("the plan names no data to train on", fix="--data FILE")
    ref = resolve(job.model)
    with clock("load"):
        listener(Stage(name="model", detail=job.model))
        weights = fetch(ref, lambda text: listener(Note(text=text)))
        if prepared is None or prepared.longest_tokens > recipe.seq_len:
            prepared = prepare(ref, job.data, job.eval_data, eval_rows=job.eval_rows, max_tokens=recipe.seq_len)
        notes = prepared.notes(recipe.seq_len)
        for note in notes:
            listener(Note(text=note))
        from autoft.trainer.build import build_model
        from autoft.trainer.engine import Engine, Watch

        environment.quiet()
        baseline = resident_bytes()
        model = build_model(recipe, config=load_config(ref), weights=weights, device=job.device, seed=job.seed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    check_disk(folder, 4 * trainable + 2**26, "the adapter")
    total = _stored_params(model)
    tokenizer, rows, heldout = prepared.tokenizer, prepared.splits.heldout, prepared.heldout
    stop = stop_ids(tokenizer, _model_stops(model))
    settings: dict[str, Any] = {"max_new_tokens": job.max_new_tokens, "stop": stop}

    def tick(done: int, of: int) -> None:
        listener(Progress(done=done, total=of))

    from autoft.trainer.evaluate import evaluate

    with clock("evaluate_before"):
        listener(Stage(name="evaluate", detail="before training"))
        before, answers_before = evaluate(model, tokenizer, rows, heldout, recipe, tick=tick, **settings)

    listener(Stage(name="train", detail=f"{len(prepared.train.examples):,} rows"))
    with clock("train"), PeakMemory(job.device, baseline) as memory:
        tokens_per_row = sum(len(e.input_ids) for e in prepared.train.examples) / len(prepared.train.examples)
        watch = Watch(listener, memory, tokens_per_row * recipe.micro_batch * job.accumulation)
        engine = Engine(
            model=model,
            tokenizer=tokenizer,
            job=job,
            examples=prepared.train.examples,
            work_dir=folder / ".trainer",
            callback=watch,
        )
        engine.train()
    if not watch.losses:
        raise TrainingError("no optimizer step was made", fix="more rows or epochs")
    train_s = sum(watch.step_times_s)
    seen = engine.state.epoch or job.epochs
    tokens = round(seen * sum(len(e.input_ids) for e in prepared.train.examples))
    trained = round(seen * sum(e.trained_tokens for e in prepared.train.examples))

    with clock("evaluate_after"):
        listener(Stage(name="evaluate", detail="after training"))
        after, answers_after = evaluate(model, tokenizer, rows, heldout, recipe, tick=tick, **settings)

    with clock("save"):
        listener(Stage(name="save"))
        base = base_reference(ref, weights)
        _save(model, tokenizer, folder, base)
        shutil.rmtree(folder / ".trainer", ignore_errors=True)
    return RunResult(
        autoft_version=__version__,
        job=job,
        base=base,
        finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=clock.seconds,
        steps=engine.state.global_step,
        tokens=tokens,
        trained_tokens=trained,
        rows=len(prepared.splits.train) - len(prepared.train.too_long),
        rows_left_out=len(prepared.train.too_long),
        trainable_params=trainable,
        total_params=total,
        losses=tuple(watch.losses),
        predicted=predicted,
        measured=Measured(
            peak_bytes=memory.peak_bytes,
            peak_reserved_bytes=memory.peak_reserved_bytes,
            step_time_s=train_s / len(watch.step_times_s),
            tokens_per_s=tokens / train_s,
            trained_tokens_per_s=trained / train_s,
        ),
        before=before,
        after=after,
        sample=_sample(rows, answers_before, answers_after),
        system_prompt=prepared.splits.system_prompt,
        hardware=_hardware(job.device),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        artifacts={},
        notes=tuple(notes),
    )


def _stored_params(model: Any) -> int:
    """Weights of the model, each counted once, 4-bit ones by what they stand for and not by their packed bytes."""
    return sum(
        p.quant_state.shape.numel() if getattr(p, "quant_state", None) is not None else p.numel()
        for p in model.parameters()
    )


def _model_stops(model: Any) -> list[int]:
    stops = model.generation_config.eos_token_id
    return [] if stops is None else stops if isinstance(stops, list) else [stops]


def _save(model: Any, tokenizer: Any, folder: Path, base: str) -> None:
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)


def _sample(rows: Any, before: list[str], after: list[str]) -> Sample | None:
    talks = [row for row in rows if row.messages]
    if not after or not talks:
        return None
    messages = talks[0].messages
    return Sample(
        prompt=messages[-2]["content"] if len(messages) > 1 else "",
        expected=messages[-1]["content"],
        before=before[0],
        after=after[0],
    )


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _hardware(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _with(result: RunResult, **changes: Any) -> RunResult:
    import dataclasses

    return dataclasses.replace(result, **changes)


@contextmanager
def _told_of_exhausted_memory(job: Job) -> Iterator[None]:
    """Out of memory, in any of its forms, as one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise TrainingError(
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
