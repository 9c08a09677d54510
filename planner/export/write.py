"""A plan as the configuration of another trainer: what it runs, its data beside it, and what it cannot express."""

from __future__ import annotations

import itertools
import json
import shlex
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.errors import OptionError
from autoft.home import write_text
from autoft.planner.export import exporter
from autoft.planner.export.base import Form, Source, only_if
from autoft.planner.plan.provenance import job_digest
from autoft.planner.plan.record import Plan
from autoft.planner.search.candidates import describe
from autoft.settings import Field, settings_of
from autoft.trainer.data.load import load_data
from autoft.trainer.data.shape import Row
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import hub_name, resolve
from autoft.units import size

COLUMNS = 100


CONTEXT_TRAINED = 'answers that are context only ("train": false) are trained by this tool'


@dataclass(frozen=True, slots=True)
class Export:
    """Files to write, by path, the configuration first. notes: what it cannot express, as in its comments."""

    files: dict[Path, str]
    command: str
    notes: tuple[str, ...]


def export_config(plan: Plan, tool: str, out: Path, *, where: str) -> Export:
    """What to write so that `tool` trains the plan from the file `out`. Nothing is written here.

    Raises: InputError when the model or the data is gone, or the plan names no data.
    """
    job = plan.job
    if job.data is None:
        raise OptionError(f"{where}: the plan names no data to train on", fix="plan again with --data FILE")
    ref = resolve(job.model)
    splits = load_data(job.data, job.eval_data, eval_rows=job.eval_rows, mapping=job.mapping)
    form = _form(itertools.chain(splits.train, splits.heldout), masks_prompt=exporter(tool).masks_prompt)
    source = Source(
        plan=plan,
        model=hub_name(ref) or str(ref.path),
        data=out.absolute().with_name(f"{out.stem}-data"),
        form=form,
        heldout=bool(splits.heldout),
        output=f"{out.stem}-output",
    )
    config = exporter(tool).configure(source)
    context = form == "messages" and any(not m.get("train", True) for row in splits.train for m in row.messages)
    notes = (
        *_notes(source, gguf=ref.kind == "gguf"),
        *((CONTEXT_TRAINED,) if context else ()),
        *config.differs,
        *_without_key(job, config.keys),
    )
    command = config.command.format(file=shlex.quote(str(out)))
    files = {out: _comments(plan, tool, command, notes) + config.text}
    files[source.data / "train.jsonl"] = _jsonl(splits.train, form, config.columns)
    if splits.heldout:
        files[source.data / "test.jsonl"] = _jsonl(splits.heldout, form, config.columns)
    files |= {source.data / name: text for name, text in config.beside.items()}
    return Export(files, command, notes)


def write_export(export: Export) -> None:
    """The data first, so that a configuration never names what is not there."""
    for path, text in reversed(export.files.items()):
        path.parent.mkdir(exist_ok=True)
        write_text(path, text)


def _form(rows: Iterable[Row], *, masks_prompt: bool) -> Form:
    """TRL, and unsloth with it, mask a prompt for any chat template; several answers need one made for that."""
    # of a text there are no messages
    answers = {sum(m["role"] == "assistant" and m.get("train", True) for m in row.messages) for row in rows}
    if answers == {0}:
        return "text"
    return "prompt_completion" if masks_prompt and answers == {1} else "messages"


def _jsonl(rows: Iterable[Row], form: Form, columns: dict[str, Any]) -> str:
    return "".join(json.dumps(_row(row, form) | columns, ensure_ascii=False) + "\n" for row in rows)


def _row(row: Row, form: Form) -> dict[str, Any]:
    if form == "text":
        return {"text": row.text}
    tools = only_if(bool(row.tools), {"tools": list(row.tools)})
    if form == "messages":
        return {"messages": list(row.messages), **tools}
    return {"prompt": list(row.messages[:-1]), "completion": list(row.messages[-1:]), **tools}


def _notes(source: Source, *, gguf: bool) -> list[str]:
    estimate, recipe = source.plan.estimate, source.recipe
    notes = [
        f"the plan's memory, {size(estimate.device_bytes)}, is that of autoft's own step and loss: "
        "another trainer takes more or less",
        "autoft's answers before and after are not evaluated, only the loss is",
    ]
    if source.num_gpus > 1:
        notes.append(
            f"it is for {source.num_gpus} GPUs, each with the whole model: the command says so, the file does not"
        )
    if source.plan.job.hosts > 1:
        notes.append(f"it is for {source.plan.job.hosts} hosts: start the command on each, as this tool has it")
    inputs = source.plan.inputs
    if inputs is not None and inputs.job_sha256 != job_digest(source.job):
        notes.append(
            "[job] was edited after it was planned: memory and warm-up steps are of before (autoft run checks)"
        )
    if gguf:
        notes.append("the model is a GGUF file, which this tool does not train: name a folder of safetensors")
    if source.plan.workload is not None and source.plan.workload.template_supplied:
        notes.append("the tokenizer has no chat template: autoft brings one, this tool needs it given")
    if source.form != "text":
        notes += _of_template(source)
    if recipe.adapter_dtype != "float32":
        notes.append(f"adapter_dtype {recipe.adapter_dtype} is not written")
    return notes


def _of_template(source: Source) -> list[str]:
    """What autoft changes in the text of the chat template and no tool has a key for."""
    workload, thinking = source.plan.workload, source.job.thinking
    if workload is None:
        return [
            f"the data were not read under the chat template: what thinking = {thinking} makes of it is not written"
        ]
    notes = []
    if workload.asked_otherwise:
        notes.append(
            f"{workload.asked_otherwise} answers are trained by autoft behind the prompt that asks for them, which the "
            "chat template writes otherwise once they are there: this tool trains what the template writes"
        )
    if workload.ended_otherwise:
        notes.append(
            f"{workload.ended_otherwise} answers are trained by autoft with a stop token that the chat template does "
            "not write: this tool may teach no end"
        )
    return notes


def _without_key(job: Job, keys: frozenset[str]) -> list[str]:
    """What the plan sets otherwise than by default and the tool has no key for."""
    fields: list[tuple[Job | Recipe, Field]] = [(job, field) for field in settings_of(Job).values()]
    fields += [(job.recipe, field) for field in settings_of(Recipe).values()]
    return [
        f"{field.name} = {json.dumps(getattr(record, field.name))} has no key here"
        for record, field in fields
        if not field.setting.exported and field.name not in keys and getattr(record, field.name) != field.default
    ]


def _comments(plan: Plan, tool: str, command: str, notes: Iterable[str]) -> str:
    estimate = f"{describe(plan.job.recipe)}, {plan.job.recipe.seq_len} tokens"
    lines = [
        f"{tool}: {plan.job.model} on {plan.place}, {estimate}. Written by autoft {__version__}.",
        f"Run it with: {command}",
        "Not as autoft does it, or not expressed:",
        *(f"- {note}" for note in notes),
    ]
    wrapped = (
        textwrap.wrap(
            "".join(char for char in " ".join(line.split()) if char.isprintable()),
            COLUMNS,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )
    return "".join(f"# {line}\n" for line in (line for group in wrapped for line in group))
