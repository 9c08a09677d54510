"""Several examples in one row of tokens, none of which sees another. B rows, S tokens a row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoft.trainer.objectives.loss import IGNORED

if TYPE_CHECKING:
    import torch

    from autoft.trainer.data.tokens import Example
    from autoft.trainer.recipe import Recipe


def pack(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Which examples share a row: places in `lengths`, row by row. Each has at most seq_len tokens, so has each row.

    Best-fit decreasing: the longest first, each into the fullest row that still has room. It takes at most 11/9 of
    the fewest rows possible, and one more (Johnson et al., SIAM J. Comput. 3(4), 1974).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), the fullest first
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(room, (lengths[example], -1))
        if at == len(room):
            room.append((seq_len, len(rows)))
            rows.append([])
        left, row = room.pop(at)
        rows[row].append(example)
        insort(room, (left - lengths[example], row))
    return rows


def packed_row(examples: Sequence[Example], seq_len: int, pad_id: int) -> dict[str, list[int]]:
    """input_ids_S, labels_S, position_ids_S and attention_mask_S of examples that share a row.

    Positions start anew with every example, by which transformers keeps them apart, and with the padding at the end.
    No label of an example's first token is left: it would be learnt from the example before.
    """
    padding = seq_len - sum(len(example.input_ids) for example in examples)
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for example in examples:
        ids += example.input_ids
        labels += [IGNORED, *example.labels[1:]]
        positions += range(len(example.input_ids))
    return {
        "input_ids": ids + [pad_id] * padding,
        "labels": labels + [IGNORED] * padding,
        "position_ids": [*positions, *range(padding)],
        "attention_mask": [1] * len(ids) + [0] * padding,
    }


def collate_packed(rows: Sequence[dict[str, Any]], recipe: Recipe) -> dict[str, torch.Tensor]:
    """A micro-batch of packed rows."""
    import torch

    return end_to_end({name: torch.tensor([row[name] for row in rows]) for name in rows[0]}, recipe)


def end_to_end(batch: dict[str, torch.Tensor], recipe: Recipe) -> dict[str, torch.Tensor]:
    """Tensors BS as they are; of packed rows and flash_attention_2 one row (1, B * S).

    FlashAttention's kernel for sequences of different lengths takes them end to end; every other kernel takes a mask
    of B * S * S, which one row would make (B * S) * (B * S).
    """
    if recipe.packing and recipe.attention == "flash_attention_2":
        return {name: tensor.view(1, -1) for name, tensor in batch.items()}
    return batch
