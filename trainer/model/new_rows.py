"""Rows of embedding and head for new tokens: there where the vocabulary has room, added where it has not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError
from autoft.trainer.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def give_rows(base: PreTrainedModel, recipe: Recipe, pieces: Sequence[Sequence[int]]) -> None:
    """Make room for the recipe's new tokens, and let each begin as the mean of what its word was before.

    A mean gives the token no logit above the largest of its pieces', so that the model writes it no more often than it
    wrote the word. pieces: of each new token, its word's former ids; none leaves the rows as they are.
    Raises: ModelError for a model whose rows PEFT cannot train.
    """
    import torch

    refuse_other_heads(base)
    add_rows(base, recipe.vocabulary(base.get_input_embeddings().weight.shape[0]))
    with torch.no_grad():
        for module in _with_rows(base):
            for token, former in zip(recipe.new_token_ids, pieces, strict=False):
                module.weight[token] = module.weight[list(former)].float().mean(dim=0).to(module.weight.dtype)


def add_rows(base: PreTrainedModel, rows: int) -> None:
    """Have embedding and head end after so many rows; those that are new are zeros. Fewer than there are: no change."""
    import torch

    former = base.get_input_embeddings().weight.shape[0]
    if rows <= former:
        return
    base.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module in _with_rows(base):
            module.weight[former:] = 0


def trained_tokens(base: PreTrainedModel, recipe: Recipe) -> dict[str, list[int]]:
    """Ids of the rows to train, by the name of their module: embedding, and head unless both share their weights."""
    names = {module: name for name, module in base.named_modules()}
    return {names[module]: list(recipe.new_token_ids) for module in _with_rows(base)}


def refuse_other_heads(base: PreTrainedModel) -> None:
    """Raises: ModelError for a head with a bias, which PEFT's trained rows leave out, and for no plain embedding."""
    import torch

    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not (isinstance(embedding, torch.nn.Embedding) and isinstance(head, torch.nn.Linear)):
        raise ModelError(
            f"new_tokens: {type(base).__name__} has no plain embedding and head, and PEFT trains rows of these",
            fix="leave new_tokens out",
        )
    if head.bias is not None:
        raise ModelError(
            f"new_tokens: the head of {type(base).__name__} has a bias, which PEFT leaves out where it trains rows",
            fix="leave new_tokens out",
        )


def _with_rows(base: PreTrainedModel) -> Iterator[Any]:
    """The embedding, and the head where it has weights of its own."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    yield embedding
    if head.weight is not embedding.weight:
        yield head
