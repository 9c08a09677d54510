"""What a trainer reads of a plan, and what it makes of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoft.planner.plan.record import Plan
from autoft.trainer.data.thinking import Switched
from autoft.trainer.job import Job
from autoft.trainer.objectives import objective_of
from autoft.trainer.optimizers import spec_of
from autoft.trainer.recipe import Recipe

Form = Literal["messages", "prompt_completion", "text"]


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

    def optimizer(self, tool: str) -> str:
        """What the tool calls it."""
        return spec_of(self.recipe.optimizer).elsewhere.get(tool, self.recipe.optimizer)

    def objective(self, tool: str) -> dict[str, Any]:
        """What the tool is told of what is minimised, in its own keys; nothing where it has none, or by default."""
        return objective_of(self.recipe).elsewhere.get(tool, {})

    @property
    def num_gpus(self) -> int:
        """Of each host."""
        return self.plan.job.num_gpus // self.plan.job.hosts

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

    differs: what the tool does otherwise or cannot express. keys: fields of Job and Recipe for which it has a key
    and not every tool does.
    beside: more files of the data folder, by name. columns: what every row has beside its turns.
    """

    text: str
    command: str
    differs: tuple[str, ...]
    keys: frozenset[str] = frozenset()
    beside: dict[str, str] = dataclasses.field(default_factory=dict)
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exporter:
    """One trainer. suffix: of its file. configure: what it reads.

    masks_prompt: it masks the prompt before one last answer for any chat template, and several answers only with a
    template made for that.
    """

    suffix: str
    configure: Callable[[Source], Config]
    masks_prompt: bool = False


def yaml_text(values: dict[str, Any]) -> str:
    """YAML in the order given, without what is None."""
    import yaml

    present = {key: value for key, value in values.items() if value is not None}
    return str(yaml.safe_dump(present, sort_keys=False, allow_unicode=True, width=10_000))


def only_if(wanted: bool, values: dict[str, Any]) -> dict[str, Any]:
    """The values, or nothing."""
    return values if wanted else {}


def whole(value: float, key: str) -> tuple[int, tuple[str, ...]]:
    """(value for a key that takes whole numbers only, what to say if it was none)."""
    number = max(1, round(value))
    note = f"{key} {value:g} is written as {number}: it takes whole numbers only"
    return number, () if number == value else (note,)


def thought_left_open(source: Source) -> list[str]:
    """For tools that cannot change the text of the template."""
    end = source.switched.end
    if end is None:
        return []
    return [f"the chat template opens a thought, which autoft closes at once ({end}): this tool leaves it open"]
