"""The rows that a run trains on: in which order, whose they are, and how they become micro-batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import pad
from transformers.trainer_pt_utils import get_length_grouped_indices

from autoft.trainer.data.tokens import Example
from autoft.trainer.distributed.group import Group
from autoft.trainer.job import Job
from autoft.trainer.objectives import objective_of
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.recipe import PAD_MULTIPLE, Recipe

ROWS = "rows"  # column of a batch: which rows of the dataset it has


class Sampler(torch.utils.data.Sampler[int]):
    """Rows at random, or those of like length side by side; an epoch's order is told by seed and epoch.

    Of several processes each has every so-manieth row of an optimizer step, so that theirs are of like length too, and
    the step has the rows that it has where one process does it all. One that gets none of an epoch's last rows has the
    filler, so that all make the same number of steps.
    """

    def __init__(self, lengths: list[int], job: Job, group: Group) -> None:
        self.lengths = lengths
        self.job = job
        self.group = group
        self.epoch = 0
        self.rows_per_step = group.size * job.recipe.micro_batch * job.accumulation

    def __len__(self) -> int:
        return len(self._shares(list(range(len(self.lengths)))))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.job.seed + self.epoch)
        if self.job.group_by_length:
            order = get_length_grouped_indices(self.lengths, self.rows_per_step, generator=generator)
        else:
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
        yield from self._shares(order)

    def _shares(self, order: list[int]) -> list[int]:
        if self.group.size == 1:
            return order
        steps = [order[at : at + self.rows_per_step] for at in range(0, len(order), self.rows_per_step)]
        shares = [step[self.group.rank :: self.group.size] or [len(self.lengths)] for step in steps]
        return [row for share in shares for row in share]

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate when an epoch begins."""
        self.epoch = epoch


def dataset(
    examples: Sequence[Example], rows: list[list[int]], recipe: Recipe, pad_id: int, *, filler: bool
) -> Dataset:
    """filler: one more row at the end, of which no token is trained."""
    of_rows = [[examples[at] for at in row] for row in rows]
    if filler:
        shortest = min(of_rows, key=lambda row: sum(len(example.input_ids) for example in row))
        of_rows.append([dataclasses.replace(example, labels=[IGNORED] * len(example.labels)) for example in shortest])
    encoded = [objective_of(recipe).row(row, recipe, pad_id) for row in of_rows]
    columns = {name: [np.asarray(row[name], np.int32) for row in encoded] for name in encoded[0]}
    return Dataset.from_dict({**columns, ROWS: list(range(len(encoded)))})


def batch_maker(recipe: Recipe, pad_id: int) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    objective = objective_of(recipe)

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([row[ROWS] for row in rows])
        rows = [{k: v for k, v in row.items() if k != ROWS} for row in rows]
        return {**objective.collate(rows, recipe, pad_id), ROWS: numbers}

    return collate


def split(inputs: dict[str, Any], size: int, row_tokens: int | None = None) -> list[dict[str, Any]]:
    """A micro-batch as several of at most `size` rows; row_tokens: a single packed row with more is cut, too."""
    parts = _split_rows(inputs, size)
    if row_tokens is None or size > 1 or parts[0]["input_ids"].size(1) <= row_tokens:
        return parts
    return [piece for part in parts for piece in _cut(part, row_tokens)]


def _cut(row: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    """A packed row as several of at most `most` tokens, each of whole examples: none sees another, so nothing changes.

    An example with more tokens has a row for itself.
    """
    tokens = int(row["attention_mask"].sum())
    starts = (row["position_ids"][0, :tokens] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], tokens]
    begin = 0
    for end, next_end in zip(ends, [*ends[1:], math.inf], strict=True):
        if next_end - begin > most:
            room = -(end - begin) % PAD_MULTIPLE
            yield {
                name: t if name == ROWS else pad(t[:, begin:end], (0, room), value=IGNORED if name == "labels" else 0)
                for name, t in row.items()
            }
            begin = end


def _split_rows(inputs: dict[str, Any], size: int) -> list[dict[str, Any]]:
    rows = len(inputs[ROWS])
    if rows <= size:
        return [inputs]
    flat = inputs["input_ids"].shape[0] == 1  # packed rows end to end, as FlashAttention takes them
    lines = {name: t if name == ROWS or not flat else t.view(rows, -1) for name, t in inputs.items()}
    parts = [{name: t[at : at + size] for name, t in lines.items()} for at in range(0, rows, size)]
    if flat:
        parts = [{name: t if name == ROWS else t.reshape(1, -1) for name, t in part.items()} for part in parts]
    return parts
