"""A finished run judged again: its base and what training made of it, on held-out rows or on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError, OutOfMemory
from autoft.schema import Record
from autoft.trainer.data.load import load_data, load_rows
from autoft.trainer.data.shape import Row
from autoft.trainer.data.split import row_key
from autoft.trainer.data.tokens import Example, model_stop_ids, stop_ids, tokenize
from autoft.trainer.data.written import chat_of
from autoft.trainer.evaluation.batches import Tell, silent
from autoft.trainer.evaluation.open_run import base_name, load_base, load_run_tokenizer, load_trained, open_result
from autoft.trainer.evaluation.samples import samples
from autoft.trainer.job import Job
from autoft.trainer.result import Evaluation, RunResult, Sample
from autoft.trainer.runtime import environment
from autoft.trainer.runtime.peak_memory import free_memory, is_out_of_memory
from autoft.trainer.sources.resolve import load_stops, resolve

Watch = Callable[[str, int, int], None]

OTHER_ROWS = 100  # of other data, for a run that was to hold none out


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement(Record):
    """data: what the rows are of. before: of the base alone, after: with what was trained; notes: what to know."""

    data: str
    before: Evaluation
    after: Evaluation
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


def judge(
    folder: Path,
    *,
    data: str | None = None,
    mapping: str | None = None,
    most: int | None = None,
    accept_changes: bool = False,
    watch: Watch = lambda which, done, total: None,
    tell: Tell = silent,
) -> Judgement:
    """Evaluate the run in `folder` as it evaluated itself, without its adapter and with it.

    data: other rows than those that were held out, mapping: which column is what, most: at most so many rows; None: as
    many as the run had. accept_changes: as `open_run` has it. watch: told whose answers ("before", "after") are made
    and how many are. tell: told what else the user should know.
    Raises: ModelError without a finished run; DataError, OptionError for its data; OutOfMemory.
    """
    result = open_result(folder, accept_changes=accept_changes, say=tell)
    job = result.job
    rows, notes = _rows(folder, job, data, mapping, job.eval_rows if most is None else most)
    for note in notes:
        tell(note)
    environment.quiet()
    tokenizer = load_run_tokenizer(folder)
    held = tokenize(
        rows, tokenizer, max_tokens=job.recipe.seq_len, stops=load_stops(resolve(base_name(folder, result)))
    )
    if held.too_long:
        notes.append(
            f"{len(held.too_long)} rows are longer than {job.recipe.seq_len} tokens, the first at {held.too_long[0]}: "
            "they have no part in the loss"
        )
        tell(notes[-1])
    try:
        (before, was), (after, now) = _both(folder, result, tokenizer, rows, held.examples, watch, tell)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory with one row at a time: {' '.join(str(error).split())[:160]}",
            fix="end what else uses the device, or choose shorter rows with --data",
        ) from error
    return Judgement(
        data=data or job.eval_data or str(job.data),
        before=before,
        after=after,
        samples=samples(rows, was, now, chat_of(tokenizer).expected),
        notes=tuple(notes),
    )


def _rows(folder: Path, job: Job, data: str | None, mapping: str | None, most: int) -> tuple[list[Row], list[str]]:
    """The rows to judge by, and what to know of them."""
    if data is not None:
        rows = load_rows(data, most=most or OTHER_ROWS, mapping=mapping)
        return rows, _trained_notes(rows, job)
    try:
        rows = load_data(str(job.data), job.eval_data, eval_rows=job.eval_rows, mapping=job.mapping).heldout
    except DataError as error:
        raise DataError(
            f"{folder}: the data of its run cannot be read: {error.what}",
            fix="--data FILE, or the same command where the run was started",
        ) from error
    if not rows:
        raise DataError(f"{folder}: its run held no rows out", fix="--data FILE with other rows")
    return rows[:most], []


def _trained_notes(rows: Sequence[Row], job: Job) -> list[str]:
    """Whether the run has trained on what it is judged by."""
    keys = [row_key(row) for row in rows]
    try:
        splits = load_data(str(job.data), job.eval_data, eval_rows=job.eval_rows, mapping=job.mapping)
    except DataError:
        return [f"whether these rows were trained is not known: {job.data} cannot be read"]
    trained = frozenset(keys).intersection(row_key(row) for row in splits.train)
    known = sum(key in trained for key in keys)
    return [f"{known} of these {len(rows)} rows were trained: the figures flatter"] if known else []


def _both(
    folder: Path,
    result: RunResult,
    tokenizer: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    watch: Watch,
    tell: Tell,
) -> tuple[tuple[Evaluation, list[str]], tuple[Evaluation, list[str]]]:
    from autoft.trainer.evaluation.evaluate import evaluate

    def judged(model: Any, which: str) -> tuple[Evaluation, list[str]]:
        watch(which, 0, len(rows))
        return evaluate(
            model,
            tokenizer,
            rows,
            examples,
            result.job.recipe,
            max_new_tokens=result.job.max_new_tokens,
            stop=stop_ids(tokenizer, model_stop_ids(model)),
            tick=lambda done, total: watch(which, done, total),
            tell=tell,
        )

    if result.job.recipe.method == "full":
        before = judged(load_base(folder, result, for_loss=True), "before")
        free_memory()
        return before, judged(load_trained(folder, result, for_loss=True), "after")
    model = load_trained(folder, result, for_loss=True)
    with model.disable_adapter():
        before = judged(model, "before")
    return before, judged(model, "after")
