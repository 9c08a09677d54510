"""A plan as the configuration of another trainer: what it runs, its data beside it, and what it cannot express."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoft import __version__
from autoft.errors import OptionError
from autoft.home import write_text
from autoft.planner.candidates import describe
from autoft.planner.inputs import job_digest
from autoft.planner.plan_file import Plan
from autoft.settings import Field, settings_of
from autoft.trainer.data.load import load_data
from autoft.trainer.data.shape import Row
from autoft.trainer.data.thinking import Switched
from autoft.trainer.job import Job
from autoft.trainer.optimizers import spec_of
from autoft.trainer.recipe import Recipe
from autoft.trainer.resolve import hub_name, resolve
from autoft.units import size

Tool = Literal["axolotl", "llamafactory", "trl", "unsloth"]
Form = Literal["messages", "prompt_completion", "text"]

SUFFIXES: dict[Tool, str] = {"axolotl": ".yaml", "llamafactory": ".yaml", "trl": ".yaml", "unsloth": ".py"}
COLUMNS = 100


CONTEXT_TRAINED = 'answers that are context only ("train": false) are trained by this tool'


@dataclass(frozen=True, slots=True)
class Source:
    """A plan as the tools need it.

    model: a hub id or folder. data: the folder with train.jsonl and test.jsonl. form: of their rows.
    heldout: whether there is a test.jsonl. output: the folder that the tool is to write.
    """

    plan: Plan
    model: str
    data: Path
    form: Form
    heldout: bool
    output: str

    @property
    def job(self) -> Job:
        return self.plan.job

    @property
    def recipe(self) -> Recipe:
        return self.plan.job.recipe

    @property
    def train_file(self) -> str:
        return str(self.data / "train.jsonl")

    @property
    def test_file(self) -> str:
        return str(self.data / "test.jsonl")

    @property
    def mixed(self) -> str | None:
        """The 16-bit format that the step runs in over float32 adapters; None without."""
        return self.recipe.base_dtype if self.recipe.autocast else None

    def optimizer(self, tool: Tool) -> str:
        """What the tool calls it."""
        return spec_of(self.recipe.optimizer).elsewhere.get(tool, self.recipe.optimizer)

    @property
    def num_gpus(self) -> int:
        return self.plan.job.num_gpus

    @property
    def has_adapter(self) -> bool:
        return self.recipe.method != "full"

    @property
    def warmup_steps(self) -> int | None:
        """As the trainer counts them; None where the number of steps is not known."""
        return None if self.plan.steps is None else self.job.warmup_steps(self.plan.steps)

    @property
    def switched(self) -> Switched:
        """What the plan's data made of the chat template's thinking."""
        workload = self.plan.workload
        if workload is None or self.form == "text":
            return Switched()
        return Switched(workload.template_value, workload.thought_end)

    @property
    def target_modules(self) -> list[str] | None:
        """None is every linear layer but the head."""
        names = self.recipe.target_modules
        return None if names == "all-linear" else list(names)


@dataclass(frozen=True, slots=True)
class Config:
    """text: of the file that the tool reads, without its comments. command: what runs it.

    differs: what the tool does otherwise or cannot express. told: fields of Job and Recipe that it takes
    and not every tool does.
    beside: more files of the data folder, by name. columns: what every row has beside its turns.
    """

    text: str
    command: str
    differs: tuple[str, ...]
    told: frozenset[str] = frozenset()
    beside: dict[str, str] = dataclasses.field(default_factory=dict)
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Export:
    """Files to write, by path, the configuration first. notes: what it cannot express, as in its comments."""

    files: dict[Path, str]
    command: str
    notes: tuple[str, ...]


def export_config(plan: Plan, tool: Tool, out: Path, *, where: str) -> Export:
    """What to write so that `tool` trains the plan from the file `out`. Nothing is written here.

    Raises: InputError when the model or the data is gone, or the plan names no data.
    """
    job = plan.job
    if job.data is None:
        raise OptionError(f"{where}: the plan names no data to train on", fix="plan again with --data FILE")
    ref = resolve(job.model)
    splits = load_data(job.data, job.eval_data, eval_rows=job.eval_rows, mapping=job.mapping)
    form = _form(itertools.chain(splits.train, splits.heldout), tool)
    source = Source(
        plan=plan,
        model=hub_name(ref) or str(ref.path),
        data=out.absolute().with_name(f"{out.stem}-data"),
        form=form,
        heldout=bool(splits.heldout),
        output=f"{out.stem}-output",
    )
    config = _writer(tool)(source)
    context = form == "messages" and any(not m.get("train", True) for row in splits.train for m in row.messages)
    notes = (
        *_notes(source, gguf=ref.kind == "gguf"),
        *((CONTEXT_TRAINED,) if context else ()),
        *config.differs,
        *_untold(job, config.told),
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


def yaml_text(values: dict[str, Any]) -> str:
    """YAML in the order given, without what is None."""
    import yaml

    said = {key: value for key, value in values.items() if value is not None}
    return str(yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=10_000))


def only_if(wanted: bool, values: dict[str, Any]) -> dict[str, Any]:
    """The values, or nothing."""
    return values if wanted else {}


def whole(value: float, key: str) -> tuple[int, tuple[str, ...]]:
    """(value for a key that takes whole numbers only, what to say if it was none)."""
    said = max(1, round(value))
    return said, () if said == value else (f"{key} {value:g} is written as {said}: it takes whole numbers only",)


def _writer(tool: Tool) -> Callable[[Source], Config]:
    if tool == "trl":
        from autoft.planner.export_trl import trl

        return trl
    if tool == "axolotl":
        from autoft.planner.export_axolotl import axolotl

        return axolotl
    if tool == "llamafactory":
        from autoft.planner.export_llamafactory import llamafactory

        return llamafactory
    from autoft.planner.export_unsloth import unsloth

    return unsloth


def _form(rows: Iterable[Row], tool: Tool) -> Form:
    """TRL, and unsloth with it, mask a prompt for any chat template; several answers need one made for that."""
    # of a text there are no messages
    answers = {sum(m["role"] == "assistant" and m.get("train", True) for m in row.messages) for row in rows}
    if answers == {0}:
        return "text"
    return "prompt_completion" if tool in ("trl", "unsloth") and answers == {1} else "messages"


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


def thought_left_open(source: Source) -> list[str]:
    """For tools that cannot change the text of the template."""
    end = source.switched.end
    if end is None:
        return []
    return [f"the chat template opens a thought, which autoft closes at once ({end}): this tool leaves it open"]


def _untold(job: Job, told: frozenset[str]) -> list[str]:
    """What the plan sets otherwise than by default and the tool has no key for."""
    fields: list[tuple[Job | Recipe, Field]] = [(job, field) for field in settings_of(Job).values()]
    fields += [(job.recipe, field) for field in settings_of(Recipe).values()]
    return [
        f"{field.name} = {json.dumps(getattr(record, field.name))} has no key here"
        for record, field in fields
        if not field.setting.exported and field.name not in told and getattr(record, field.name) != field.default
    ]


def _comments(plan: Plan, tool: Tool, command: str, notes: Iterable[str]) -> str:
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
