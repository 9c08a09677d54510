"""Next-token cross entropy over the trained tokens, computed as recipe.loss says. B batch, S sequence, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from autoft.trainer.adapters.prompt import tokens_before

if TYPE_CHECKING:
    import torch

    from autoft.trainer.recipe import Recipe

IGNORED = -100  # label of a token that is not trained, PyTorch's own convention


def compute_loss(
    model: torch.nn.Module,
    batch: dict[str, Any],
    recipe: Recipe,
    *,
    num_trained_tokens: Any = None,
    weigh: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Negative log likelihood in nats, summed over the trained tokens of `batch` and divided by `num_trained_tokens`.

    batch: input_ids_BS, attention_mask_BS and labels_BS (IGNORED where not trained; labels are shifted here), and of
        packed rows position_ids_BS, which start anew with every example.
    num_trained_tokens: of the whole optimizer step, so that accumulation leaves the loss alone; None counts `batch`'s.
    weigh: makes of the losses of all tokens, 0 where not trained, what is summed; not with recipe.loss "logits".
    """
    import torch

    labels_BS = batch["labels"]
    # Rows are padded on the right, where no causal token looks: without a mask attention takes its leanest kernel.
    # Of packed rows transformers tells the examples by their positions, but only where there is no mask
    batch = {name: value for name, value in batch.items() if name != "attention_mask"}
    if num_trained_tokens is None and recipe.loss != "logits":  # Hugging Face's loss counts them itself
        num_trained_tokens = (labels_BS[:, 1:] != IGNORED).sum().clamp(min=1)
    # autocast knows no meta device: a rehearsal there reads that of the CPU
    device = "cpu" if labels_BS.is_meta else labels_BS.device.type
    with torch.autocast(device, dtype=getattr(torch, recipe.base_dtype), enabled=recipe.autocast):
        if recipe.loss == "logits":
            assert weigh is None  # a Recipe refuses an objective that would need it
            loss: torch.Tensor = model(**batch, use_cache=False, num_items_in_batch=num_trained_tokens).loss
            return loss
        if recipe.loss == "fused":
            forward = partial(model, **batch, use_cache=False, fused_lm_head=True)
            summed = -forward().log_probs.sum() if weigh is None else weigh(-forward().log_probs).sum()
        else:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            targets_BS = labels_BS[:, 1:]
            columns = _trained_columns(targets_BS, recipe.pad_multiple)
            inputs["logits_to_keep"] = columns + before if (before := tokens_before(model)) else columns
            targets_BS = targets_BS[:, columns]
            logits_BSV = model(**inputs, use_cache=False).logits[:, : targets_BS.size(1)].float()
            summed = torch.nn.functional.cross_entropy(
                logits_BSV.flatten(0, 1),
                targets_BS.flatten(),
                ignore_index=IGNORED,
                reduction="sum" if weigh is None else "none",
            )
            if weigh is not None:
                summed = weigh(summed).sum()
    return torch.div(summed, num_trained_tokens)


def _trained_columns(targets: torch.Tensor, multiple: int) -> torch.Tensor:
    """Columns in which some row trains a token, filled up with others to a multiple. A rehearsal takes all.

    Few shapes, as of padded rows: with another count in each batch, a CPU's process grows from step to step
    (benchmarks/cpu_growth.py).
    """
    import torch

    if targets.is_meta:
        return torch.arange(targets.size(1), device="meta")
    trained = (targets != IGNORED).any(dim=0)
    count = min(-(-int(trained.sum()) // multiple) * multiple, targets.size(1))
    return trained.int().argsort(descending=True, stable=True)[:count].sort().values
