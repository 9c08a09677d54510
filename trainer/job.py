"""The Job: a Recipe plus data, schedule and evaluation. All that the trainer needs, and nothing more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from autoft.schema import Record
from autoft.trainer.recipe import Recipe

Device = Literal["cuda", "cpu"]
Schedule = Literal["linear", "cosine", "constant"]
Metric = Literal["loss", "exact_match", "json_valid", "fields_right", "number_match", "f1", "rouge_l"]
Thinking = Literal["auto", "on", "off"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Record):
    """One run.

    model: a hub id, local folder, .gguf file, catalogue name or "starter".
    data, eval_data: files, or "starter" for the bundled task; data None is a plan without data; with eval_data None
        up to eval_rows rows are held out of data.
    num_gpus: replicas of the model, each on a GPU of its own with its own micro-batches: an optimizer step has
        num_gpus x micro_batch x accumulation sequences. On a CPU they are processes that share it.
    mapping: which column of the data is what, as --map words it; None tells it by the columns' names.
    thinking: whether the model's chat template is to think before answers, where it has a switch for that; auto: as the
        answers of the data do (trainer/data/thinking.py).
    accumulation: micro-batches in one optimizer step. learning_rate is the peak; warmup_ratio the part of all steps
        that leads up to it. max_grad_norm: gradients are clipped to this 2-norm.
    group_by_length: rows of like length share an optimizer step, so that less is padded: rows are drawn at random, some
        steps' worth at a time, fifty at most, and these come by length. The first step has the longest row of all.
    max_steps: stop after so many optimizer steps; None trains all epochs.
    max_new_tokens: the longest answer that the evaluation generates; 0 evaluates the loss only.
    eval_steps: evaluate every so many optimizer steps too; None only before and after. The weights of the best
        evaluation by `metric` are kept then, and early_stopping ends a run after so many without a better one.
    metric: a figure of trainer/result.py's Evaluation.
    save_minutes, save_steps: the longest time, and steps, between checkpoints; the last keep_checkpoints stay.
    report_to: trackers that the run is told to as well, through the callbacks of transformers.
    """

    model: str
    recipe: Recipe
    data: str | None = None
    device: Device = "cpu"
    num_gpus: Annotated[int, Ge(1)] = 1
    eval_data: str | None = None
    mapping: str | None = None
    thinking: Thinking = "auto"
    eval_rows: Annotated[int, Ge(0)] = 100
    epochs: Annotated[float, Gt(0)] = 1.0
    group_by_length: bool = False
    max_steps: Annotated[int, Gt(0)] | None = None
    accumulation: Annotated[int, Gt(0)] = 1
    learning_rate: Annotated[float, Gt(0)] = 2e-4
    schedule: Schedule = "cosine"
    warmup_ratio: Annotated[float, Ge(0), Le(1)] = 0.03
    weight_decay: Annotated[float, Ge(0)] = 0.0
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    max_new_tokens: Annotated[int, Ge(0)] = 128
    eval_steps: Annotated[int, Gt(0)] | None = None
    metric: Metric = "loss"
    early_stopping: Annotated[int, Gt(0)] | None = None
    save_minutes: Annotated[float, Gt(0)] = 10.0
    save_steps: Annotated[int, Gt(0)] | None = None
    keep_checkpoints: Annotated[int, Gt(0)] = 2
    report_to: tuple[Tracker, ...] = ()
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0

    def warmup_steps(self, total_steps: int) -> int:
        """In a run of total_steps. Never all: the first has a rate of 0, and a run of one step would learn nothing."""
        return max(0, min(math.ceil(total_steps * self.warmup_ratio), total_steps - 1))

    @property
    def lr_scheduler(self) -> str:
        """The schedule by the name that transformers has for it; its "constant" would leave the warm-up out."""
        return "constant_with_warmup" if self.schedule == "constant" else self.schedule

    def __post_init__(self) -> None:
        if self.group_by_length and self.recipe.packing:
            raise ValueError("group_by_length has nothing to group beside packing: all rows are of one length then")
        if self.early_stopping is not None and self.eval_steps is None:
            raise ValueError("early_stopping needs eval_steps: it counts evaluations")
        if self.eval_steps is not None and self.eval_rows == 0 and self.eval_data is None:
            raise ValueError("eval_steps needs held-out rows: eval_rows must not be 0")
        if self.metric != "loss" and self.max_new_tokens == 0:
            raise ValueError(f"metric {self.metric} is of answers: max_new_tokens must not be 0")
