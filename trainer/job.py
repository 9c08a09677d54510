"""The Job: a Recipe plus data, schedule and evaluation. All that the trainer needs, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from autoft.schema import Record
from autoft.trainer.recipe import Recipe

Device = Literal["cuda", "cpu"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Record):
    """One run.

    model: a hub id, local folder, .gguf file, catalogue name or "starter".
    data, eval_data: files, or "starter" for the bundled task; data None is a plan without data; with eval_data None
        up to eval_rows rows are held out of data.
    mapping: which column of the data is what, as --map words it; None tells it by the columns' names.
    accumulation: micro-batches in one optimizer step. learning_rate is the peak; warmup_ratio the part of all steps
        that leads up to it. max_grad_norm: gradients are clipped to this 2-norm.
    group_by_length: rows of like length share an optimizer step, so that less is padded: rows are drawn at random, some
        steps' worth at a time, fifty at most, and these come by length. The first step has the longest row of all.
    max_steps: stop after so many optimizer steps; None trains all epochs.
    max_new_tokens: the longest answer that the evaluation generates; 0 evaluates the loss only.
    """

    model: str
    recipe: Recipe
    data: str | None = None
    device: Device = "cpu"
    eval_data: str | None = None
    mapping: str | None = None
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
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0

    def __post_init__(self) -> None:
        if self.group_by_length and self.recipe.packing:
            raise ValueError("group_by_length has nothing to group beside packing: all rows are of one length then")
