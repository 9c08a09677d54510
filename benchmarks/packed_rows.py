"""A micro-batch of packed rows with random tokens, laid out by the trainer's own functions."""

from __future__ import annotations

from typing import Any


def packed_batch(recipe: Any, vocabulary: int) -> dict[str, Any]:
    """Two examples in every first row, two and padding in every second; no two begin in the same column."""
    import torch

    from autoft.trainer.data.tokens import Example
    from autoft.trainer.objectives.packing import collate_packed, packed_row

    rows = []
    for row in range(recipe.micro_batch):
        first = recipe.seq_len // 3 + row
        second = recipe.seq_len - first if row % 2 == 0 else recipe.seq_len // 2
        ids = [torch.randint(3, vocabulary, (length,)).tolist() for length in (first, second)]
        rows.append(packed_row([Example(i, i) for i in ids], recipe.seq_len, pad_id=0))
    return collate_packed(rows, recipe)
