"""Batches of examples whose next tokens are learnt: rows, micro-batches, and one without data. B rows, S tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.objectives.packing import collate_packed, end_to_end, packed_row

if TYPE_CHECKING:
    import torch

    from autoft.trainer.data.tokens import Example
    from autoft.trainer.recipe import Recipe


def row(examples: Sequence[Example], recipe: Recipe, pad_id: int, width: int | None = None) -> dict[str, Any]:
    """input_ids_S and labels_S of one example; of packed ones what tells them apart too, in `width` tokens."""
    if recipe.packing:
        return packed_row(examples, width or recipe.seq_len, pad_id)
    (example,) = examples
    return {"input_ids": example.input_ids, "labels": example.labels}


def collate(rows: Sequence[dict[str, Any]], recipe: Recipe, pad_id: int) -> dict[str, torch.Tensor]:
    """A micro-batch of rows, padded on the right to recipe.pad_multiple unless they are packed."""
    if recipe.packing:
        return collate_packed(rows, recipe)
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    padded = DataCollatorForLanguageModeling(pad_id, pad_to_multiple_of=recipe.pad_multiple)
    batch: dict[str, torch.Tensor] = padded(rows)
    return batch


def dummy_batch(recipe: Recipe, ids: torch.Tensor | None = None, *, plain: bool = False) -> dict[str, torch.Tensor]:
    """A micro-batch of exactly the recipe's shape: no padding, every token trained.

    ids: BS, its tokens, where it is to have values; packed rows are then two examples long. Without, all is on the meta
        device.
    plain: as Hugging Face's own loop makes it: labels are the tokens themselves, and there is no mask.
    """
    import torch

    shape = (recipe.micro_batch, recipe.seq_len)
    names = ["input_ids"] if plain else ["input_ids", "labels", "attention_mask"]
    if recipe.packing:
        names.append("position_ids")
    if ids is None:
        batch = {name: torch.empty(shape, dtype=torch.long, device="meta") for name in names}
    else:
        assert ids.shape == shape
        values = _values(recipe, ids)
        batch = {name: values[name] for name in names}
    return end_to_end({"input_ids": batch["input_ids"], "labels": batch["input_ids"], **batch}, recipe)


def _values(recipe: Recipe, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    labels_BS, positions_S = ids.clone(), torch.arange(recipe.seq_len, device=ids.device)
    if recipe.packing:
        positions_S %= -(-recipe.seq_len // 2)
        labels_BS[:, positions_S == 0] = IGNORED
    return {
        "input_ids": ids,
        "labels": labels_BS,
        "attention_mask": torch.ones_like(ids),
        "position_ids": positions_S.repeat(recipe.micro_batch, 1),
    }
