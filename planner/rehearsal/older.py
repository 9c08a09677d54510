"""Hugging Face's own step as other versions of it were: the loss on all logits, checkpoints, what is cast.

B batch, S sequence, H heads, D head, V vocabulary. `arrange` changes a model without storage, before it is rehearsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional

from autoft.planner.rehearsal.loop import Loop
from autoft.trainer.compat.transformers import FLASH_ATTENTION, GROUPED_HEADS
from autoft.trainer.model.build import without_adapter
from autoft.trainer.recipe import Recipe, torch_dtype

# trl/trainer/utils.py, peft_module_casting_to_bf16: embeddings and head, by their modules' names
_ENDS = ("lm_head", "embed_tokens", "wte", "wpe")


def is_end(name: str) -> bool:
    """Whether TRL below 0.20 puts a weight of that name back to 16 bits after k-bit preparation."""
    return any(part in name for part in _ENDS)


def arrange(model: Any, recipe: Recipe, loop: Loop) -> None:
    """Have `model` step as the loop's versions do."""
    base = without_adapter(model)
    if loop.half_ends and recipe.kbit_upcast:
        for name, parameter in base.named_parameters():
            if is_end(name) and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch_dtype(recipe.base_dtype))
    if loop.reentrant and recipe.gradient_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": True}, every_n_layers=recipe.checkpoint_every
        )
    if recipe.loss != "logits":
        return
    if loop.logits_form == "widened":
        base.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits.float())
    if loop.logits_form != "whole":
        base.loss_function = _loss_on_copied_logits
    if loop.wide_output and recipe.autocast:
        model.register_forward_hook(_widen)


def _loss_on_copied_logits(
    logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, num_items_in_batch: Any = None, **_: Any
) -> torch.Tensor:
    """transformers 4.48.1, loss/loss_utils.py, ForCausalLMLoss: logits_BSV in float32, and a copy of all but the last.

    Both live until the loss is there.
    """
    logits = logits.float()
    shifted = logits[..., :-1, :].contiguous()
    targets = labels[..., 1:].contiguous()
    shifted = shifted.view(-1, vocab_size)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = functional.cross_entropy(shifted, targets.view(-1), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _widen(_module: Any, _inputs: Any, output: Any) -> Any:
    """accelerate/utils/operations.py, convert_to_fp32: a copy of 16-bit logits; the model's own are let go of."""
    output.logits = output.logits.float()
    return output


@contextmanager
def older_attention(loop: Loop) -> Iterator[None]:
    """Inside, attention gets its k_BSHD and v_BSHD as the loop's version of transformers gives them."""
    given = FLASH_ATTENTION.fetch()

    def repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        groups = q.size(2) // k.size(2)
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=2) for t in (k, v))
        return given(q, k, v, *args, **kwargs)

    with ExitStack() as stack:
        if "flash_attention_2" in loop.repeats_heads:
            stack.enter_context(FLASH_ATTENTION.replaced_by(repeated))
        if "sdpa" in loop.repeats_heads:
            stack.enter_context(GROUPED_HEADS.replaced_by(lambda *_, **__: False))
        yield
