"""How good a model is on held-out rows: the loss of the expected answers, and greedy answers compared with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autoft.trainer.data.shape import Row
from autoft.trainer.data.tokens import Example, prompt_ids
from autoft.trainer.loss import IGNORED, compute_loss
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation

if TYPE_CHECKING:
    import torch

Tick = Callable[[int, int], None]

# Answers generated side by side. On a GPU as many as the training step has rows: their cache needs less than its
# activations, so what trains can be evaluated. On a CPU memory is wide, and a step costs much the same for few or many.
CPU_GENERATE_BATCH = 50


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    tick: Tick = lambda done, total: None,
) -> tuple[Evaluation, list[str]]:
    """Loss over `examples`; where max_new_tokens allows, greedy answers to the last turn of `rows` and their score.

    Returns the evaluation and the answers, in the order of the rows that are conversations.
    """
    began = time.perf_counter()
    talks = [row for row in rows if row.messages]
    answers = []
    if max_new_tokens and talks:
        prompts = [prompt_ids(row.messages[:-1], tokenizer) for row in talks]
        batch = CPU_GENERATE_BATCH if model.device.type == "cpu" else recipe.micro_batch
        answers = generate(model, tokenizer, prompts, batch=batch, max_new_tokens=max_new_tokens, stop=stop, tick=tick)
    expected = [row.messages[-1]["content"] for row in talks]
    return (
        Evaluation(
            rows=len(rows),
            loss=mean_loss(model, tokenizer, examples, recipe) if examples else None,
            generated_rows=len(answers),
            **score(expected, answers),
            seconds=round(time.perf_counter() - began, 2),
        ),
        answers,
    )


def mean_loss(model: Any, tokenizer: Any, examples: Sequence[Example], recipe: Recipe) -> float:
    """Nats a trained token over all examples, each token counting the same whatever its batch."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(_pad_id(tokenizer), pad_to_multiple_of=recipe.pad_multiple)
    total = 0.0
    with _evaluating(model), torch.no_grad():
        for batch in _batches(sorted(examples, key=lambda e: len(e.input_ids)), recipe.micro_batch):
            tensors = collate([{"input_ids": e.input_ids, "labels": e.labels} for e in batch])
            tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
            total += float(compute_loss(model, tensors, recipe, num_trained_tokens=1))
    return total / sum(label != IGNORED for e in examples for label in e.labels[1:])


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    batch: int,
    max_new_tokens: int,
    stop: Sequence[int],
    tick: Tick = lambda done, total: None,
) -> list[str]:
    """Greedy answers to token prompts, in their order. Prompts of like length share a batch, `batch` at a time."""
    import torch
    from transformers import GenerationConfig

    pad = _pad_id(tokenizer)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop), pad_token_id=pad, use_cache=True
    )
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done = 0
    with _evaluating(model), _contiguous_head(model), torch.inference_mode():
        for chosen in _batches(order, batch):
            width = max(len(prompts[i]) for i in chosen)
            ids_BS = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in chosen], device=model.device)
            mask_BS = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=model.device
            )
            out_BS = model.generate(input_ids=ids_BS, attention_mask=mask_BS, generation_config=settings)
            for i, tokens in zip(chosen, out_BS[:, width:].tolist(), strict=True):
                answers[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            done += len(chosen)
            tick(done, len(prompts))
    return answers


def score(expected: Sequence[str], answers: Sequence[str]) -> dict[str, float | None]:
    """Exact match always; validity and fields where every expected answer is a JSON object. Empty without answers."""
    if not answers:
        return {}
    pairs = list(zip(expected, answers, strict=True))
    scores: dict[str, float | None] = {"exact_match": _share(want.strip() == got for want, got in pairs)}
    wanted = [_json_object(want) for want in expected]
    if all(want is not None for want in wanted):
        got_objects = [_json_object(got) for got in answers]
        scores["json_valid"] = _share(got is not None for got in got_objects)
        scores["fields_right"] = _share(
            key in (got or {}) and _same((got or {})[key], value)
            for want, got in zip(wanted, got_objects, strict=True)
            for key, value in (want or {}).items()
        )
    return scores


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def _share(flags: Iterable[bool]) -> float:
    counted = list(flags)
    return sum(counted) / len(counted)


def _pad_id(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def _contiguous_head(model: Any) -> Iterator[None]:
    """Hand the head whole tensors inside the block.

    The last position of a prompt is a strided slice, and for such an input PyTorch 2.13 multiplies on the CPU with a
    copy of the head's weight for every sequence: gigabytes for a small model.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the former mode after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
