"""A finished run judged again: its base and what training made of it, on held-out rows or on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoft.errors import DataError, OptionError, OutOfMemory
from autoft.schema import Record
from autoft.trainer.data.load import load_data, load_rows
from autoft.trainer.data.read import open_data
from autoft.trainer.data.shape import Row, convert_rows
from autoft.trainer.data.split import row_key
from autoft.trainer.data.tokens import Example, model_stop_ids, stop_ids, tokenize
from autoft.trainer.data.written import chat_of
from autoft.trainer.evaluation import bootstrap
from autoft.trainer.evaluation.batches import Tell, silent
from autoft.trainer.evaluation.metrics import Part, Parts, mean_of
from autoft.trainer.evaluation.open_run import base_name, load_base, load_run_tokenizer, load_trained, open_result
from autoft.trainer.evaluation.samples import samples
from autoft.trainer.job import Job
from autoft.trainer.recipe import Method, QuantType, Recipe
from autoft.trainer.result import Evaluation, Form, RunResult, Sample
from autoft.trainer.runtime import environment
from autoft.trainer.runtime.peak_memory import free_memory, is_out_of_memory
from autoft.trainer.sources.resolve import load_stops, resolve

Watch = Callable[[str, int, int], None]

GENERAL = Path(__file__).with_name("general.jsonl")
OTHER_ROWS = 100  # of other data, for a run that was to hold none out


@dataclass(frozen=True, kw_only=True, slots=True)
class Change(Record):
    """The interval in which 95 % of bootstrap draws of the rows have a figure's change."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant(Record):
    """The trained model in another form, on the same rows. changes: from the trained model as it is, by figure."""

    name: Form
    evaluation: Evaluation
    changes: dict[str, Change]


@dataclass(frozen=True, kw_only=True, slots=True)
class General(Record):
    """Loss on general prompts, which are bundled: what training cost elsewhere. change: after - before."""

    rows: int
    before: float
    after: float
    change: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement(Record):
    """data: what the rows are of. before: of the base alone, after: with what was trained; notes: what to know.

    changes: after - before, by figure, where there are rows enough. variants: as they were asked for. general: None
    where the model's chat template does not take the prompts.
    """

    data: str
    before: Evaluation
    after: Evaluation
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    changes: dict[str, Change] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    general: General | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    """What each model of the run is judged by. general: the bundled prompts."""

    folder: Path
    result: RunResult
    tokenizer: Any
    rows: Sequence[Row]
    examples: Sequence[Example]
    general: Sequence[Example]
    watch: Watch
    tell: Tell


@dataclass(frozen=True, slots=True)
class _Judged:
    """parts: what each row adds to each figure. general: nats and tokens of each general prompt."""

    evaluation: Evaluation
    answers: list[str]
    parts: Parts
    general: list[Part]


def judge(
    folder: Path,
    *,
    data: str | None = None,
    mapping: str | None = None,
    most: int | None = None,
    forms: Sequence[Form] = (),
    accept_changes: bool = False,
    watch: Watch = lambda which, done, total: None,
    tell: Tell = silent,
) -> Judgement:
    """Evaluate the run in `folder` as it evaluated itself, without its adapter and with it.

    data: other rows than those that were held out, mapping: which column is what, most: at most so many rows; None: as
    many as the run had. forms: other forms of the trained model to judge beside it. accept_changes: as `open_run` has
    it. watch: told whose answers ("before", "after", a form) are made and how many are. tell: told what else the user
    should know.
    Raises: ModelError without a finished run; DataError, OptionError for its data and forms; OutOfMemory.
    """
    result = open_result(folder, accept_changes=accept_changes, say=tell)
    job = result.job
    recipes = {form: recipe_of(form, job.recipe) for form in forms}
    rows, notes = _rows(folder, job, data, mapping, job.eval_rows if most is None else most)
    for note in notes:
        tell(note)
    environment.quiet()
    tokenizer = load_run_tokenizer(folder)
    stops = load_stops(resolve(base_name(folder, result)))
    held = tokenize(rows, tokenizer, max_tokens=job.recipe.seq_len, stops=stops)
    if held.too_long:
        notes.append(
            f"{len(held.too_long)} rows are longer than {job.recipe.seq_len} tokens, the first at {held.too_long[0]}: "
            "they have no part in the loss"
        )
        tell(notes[-1])
    task = _Task(folder, result, tokenizer, rows, held.examples, _general(tokenizer, stops), watch, tell)
    try:
        before, after = _both(task)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory with one row at a time: {' '.join(str(error).split())[:160]}",
            fix="end other programs on the device, or choose shorter rows with --data",
        ) from error
    variants = []
    for form, recipe in recipes.items():
        judged = _judged_as(task, form, recipe)
        if judged is None:
            notes.append(f"{form}: out of memory, left out")
            tell(notes[-1])
        else:
            variants.append(Variant(name=form, evaluation=judged.evaluation, changes=_changes(after, judged)))
    return Judgement(
        data=data or job.eval_data or str(job.data),
        before=before.evaluation,
        after=after.evaluation,
        samples=samples(rows, before.answers, after.answers, chat_of(tokenizer).expected),
        notes=tuple(notes),
        changes=_changes(before, after),
        variants=tuple(variants),
        general=_general_change(before, after),
    )


def recipe_of(form: Form, recipe: Recipe) -> Recipe:
    """How the model of a run by `recipe` is loaded in that form. Raises: OptionError where it has no such form."""
    if form == "merged" and recipe.method == "full":
        raise OptionError("--also merged: the run trained all weights, and has no adapter", fix="leave it out")
    if form == recipe.quant_type:
        raise OptionError(f"--also {form}: the run was trained in {form}, and is judged so", fix="leave it out")
    method: Method = "lora" if form == "merged" else "qlora"
    quant_type: QuantType | None = None if form == "merged" else form
    try:
        return replace(
            recipe, method=method, quant_type=quant_type, double_quant=False, experts_4bit=False, kbit_upcast=False
        )
    except ValueError as error:
        raise OptionError(f"--also {form}: {error}", fix="leave it out") from error


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


def _general(tokenizer: Any, stops: Sequence[int]) -> list[Example]:
    """The bundled prompts and answers in this model's chat template; none where it does not take them."""
    try:
        return list(tokenize(convert_rows(open_data(str(GENERAL)).train(), None), tokenizer, stops=stops).examples)
    except DataError:
        return []


def _both(task: _Task) -> tuple[_Judged, _Judged]:
    folder, result = task.folder, task.result
    if result.job.recipe.method == "full":
        before = _judged(task, load_base(folder, result, for_loss=True), "before")
        free_memory()
        return before, _judged(task, load_trained(folder, result, for_loss=True), "after")
    model = load_trained(folder, result, for_loss=True)
    with model.disable_adapter():
        before = _judged(task, model, "before")
    return before, _judged(task, model, "after")


def _judged_as(task: _Task, form: Form, recipe: Recipe) -> _Judged | None:
    """The trained model loaded by another recipe; None where memory does not suffice."""
    free_memory()
    try:
        model = load_trained(task.folder, task.result, recipe=recipe, for_loss=True)
        if form == "merged":
            model.merge_adapter()
        return replace(_judged(task, model, form), general=[])
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _judged(task: _Task, model: Any, which: str) -> _Judged:
    from autoft.trainer.evaluation.evaluate import evaluate, mean_loss

    job, parts = task.result.job, Parts()
    task.watch(which, 0, len(task.rows))
    evaluation, answers = evaluate(
        model,
        task.tokenizer,
        task.rows,
        task.examples,
        job.recipe,
        max_new_tokens=job.max_new_tokens,
        stop=stop_ids(task.tokenizer, model_stop_ids(model)),
        tick=lambda done, total: task.watch(which, done, total),
        tell=task.tell,
        parts=parts,
    )
    general: list[Part] = []
    if task.general and which in ("before", "after"):
        mean_loss(model, task.tokenizer, task.general, job.recipe, tell=task.tell, by_row=general)
    return _Judged(evaluation, answers, parts, general)


def _changes(before: _Judged, after: _Judged) -> dict[str, Change]:
    intervals = bootstrap.changes(before.parts, after.parts)
    return {name: Change(lower=lower, upper=upper) for name, (lower, upper) in intervals.items()}


def _general_change(before: _Judged, after: _Judged) -> General | None:
    if not before.general:
        return None
    lower, upper = bootstrap.interval(before.general, after.general)
    return General(
        rows=len(before.general),
        before=mean_of(before.general),
        after=mean_of(after.general),
        change=Change(lower=lower, upper=upper),
    )
