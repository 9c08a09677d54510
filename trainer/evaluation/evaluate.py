"""How good a model is on held-out rows: the loss of the expected answers, and greedy answers beside them.

Nothing of it is the peak of a run: batches hold no more tokens than a training step does, and answers take what the
step has shown to be there (trainer/evaluation/generate.py). Where memory runs out all the same, batches are halved.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoft.trainer.data.shape import Row
from autoft.trainer.data.tokens import Example, prompt_ids
from autoft.trainer.data.written import chat_of
from autoft.trainer.evaluation.batches import Tell, in_batches, silent
from autoft.trainer.evaluation.generate import Check, Tick, evaluating, generate, nothing, pad_id, room_of
from autoft.trainer.evaluation.metrics import Part, Parts, mean_of, perplexity, row_scores
from autoft.trainer.objectives import objective_of
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import Evaluation

if TYPE_CHECKING:
    import torch


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    peak_bytes: int | None = None,
    tick: Tick = lambda done, total: None,
    tell: Tell = silent,
    check: Check = nothing,
    parts: Parts | None = None,
) -> tuple[Evaluation, list[str]]:
    """Loss over `examples`; where max_new_tokens allows, greedy answers to the last turn of `rows` and their score.

    rows: as they were read; examples: their tokens, without those that are longer than recipe.seq_len. peak_bytes: on a
    GPU, the most that may be allocated (`room_of`). tell: told when memory runs out.
    check: called between batches and before every token of an answer; what it raises ends the evaluation.
    parts: filled with what each row contributes to each figure.
    Returns the evaluation and the answers without their thoughts, in the order of the rows that are conversations; a
    prompt that is longer than recipe.seq_len has an empty one, which is not scored.
    """
    began = time.perf_counter()
    by_row: list[Part] | None = None if parts is None else []
    loss = mean_loss(model, tokenizer, examples, recipe, tell=tell, check=check, by_row=by_row) if examples else None
    talks = [row for row in rows if row.messages] if max_new_tokens else []
    answers = [""] * len(talks)
    prompts = _prompts(rows, tokenizer, recipe) if talks else {}
    if prompts:
        room = room_of(model, recipe, peak_bytes=peak_bytes)
        generated = generate(
            model,
            tokenizer,
            list(prompts.values()),
            max_new_tokens=max_new_tokens,
            stop=stop,
            room=room,
            tick=tick,
            tell=tell,
            check=check,
        )
        for at, answer in zip(prompts, generated, strict=True):
            answers[at] = chat_of(tokenizer).spoken(answer)
    scored = row_scores([chat_of(tokenizer).expected(talks[at]) for at in prompts], [answers[at] for at in prompts])
    if parts is not None:
        parts.update(scored)
        if by_row:
            parts["loss"] = by_row
    return (
        Evaluation(
            rows=len(rows),
            loss=loss,
            perplexity=None if loss is None else perplexity(loss),
            generated_rows=len(prompts),
            **{name: mean_of(of_rows) for name, of_rows in scored.items()},
            seconds=round(time.perf_counter() - began, 2),
        ),
        answers,
    )


def evaluate_longest(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    max_new_tokens: int,
    peak_bytes: int | None = None,
    tell: Tell = silent,
) -> None:
    """What `evaluate` takes most memory for: the loss of the longest batch, and the longest prompts' last tokens.

    Prompts are read as long as they and their answers are, so that two tokens more fill the cache as the whole answer
    would. On a CPU, where memory is wide and reading takes its time, they are no more than a micro-batch has rows.
    Everything is as it was afterwards.
    Raises: what exhausted memory, when one row is too much.
    """
    if examples:
        mean_loss(model, tokenizer, longest_batch(examples, recipe), recipe, tell=tell)
    prompts = list(_prompts(rows, tokenizer, recipe).values()) if max_new_tokens else []
    if prompts:
        room = room_of(model, recipe, peak_bytes=peak_bytes)
        width = max(map(len, prompts))
        answer = room.new_tokens(width, max_new_tokens)
        longest = [_stretched(prompt, width + answer - 2) for prompt in prompts if len(prompt) == width]
        most = room.rows(width, answer)
        if model.device.type == "cpu":
            most = min(most, recipe.micro_batch)
        batch = (longest * most)[:most]
        generate(model, tokenizer, batch, max_new_tokens=2, stop=(), room=room, tell=tell, batch=len(batch))


def longest_batch(examples: Sequence[Example], recipe: Recipe) -> list[Example]:
    """The longest examples, as many as a micro-batch has rows; one of few stands for more."""
    longest = sorted(examples, key=lambda example: -len(example.input_ids))
    return (longest * recipe.micro_batch)[: recipe.micro_batch]


def mean_loss(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    tell: Tell = silent,
    check: Check = nothing,
    by_row: list[Part] | None = None,
) -> float:
    """Nats a trained token over all examples, each token counting the same whatever its batch and the objective.

    A batch has as many tokens, padding included, as a micro-batch of the longest of `examples`: rows that are shorter
    go together in greater number. by_row: gets nats and trained tokens of each example, in their order; nothing where
    recipe.loss is "logits", whose loss is the model's own of a whole batch.
    """
    objective, padding, alone = objective_of(recipe), pad_id(tokenizer), replace(recipe, packing=False)
    order = sorted(range(len(examples)), key=lambda at: -len(examples[at].input_ids))
    ordered = [examples[at] for at in order]
    most = recipe.micro_batch * _padded(ordered[0], recipe)
    losses: list[float] = []
    nats: list[float] = []  # of each of `ordered`
    with_rows = by_row is not None and recipe.loss != "logits"

    def add(batch: Sequence[Example]) -> None:
        check()
        rows = [objective.row([example], alone, padding) for example in batch]
        tensors = objective.collate(rows, alone, padding)
        tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        of_rows: list[float] = []

        def note(of_tokens: torch.Tensor) -> torch.Tensor:
            of_rows.extend(of_tokens.detach().reshape(len(batch), -1).sum(dim=1).tolist())
            return of_tokens

        options = {"weigh": note} if with_rows else {}
        losses.append(float(objective.metrics["loss"](model, tensors, recipe, num_trained_tokens=1, **options)))
        nats.extend(of_rows)

    with evaluating(model):
        in_batches(ordered, lambda example: most // _padded(example, recipe), add, tell=tell)
    trained = [sum(label != IGNORED for label in example.labels[1:]) for example in examples]
    if by_row is not None and with_rows:
        of_example = dict(zip(order, nats, strict=True))
        by_row += [(of_example[at], trained[at]) for at in range(len(examples))]
    return sum(losses) / sum(trained)


def _padded(example: Example, recipe: Recipe) -> int:
    return -(-len(example.input_ids) // recipe.pad_multiple) * recipe.pad_multiple


def _prompts(rows: Sequence[Row], tokenizer: Any, recipe: Recipe) -> dict[int, list[int]]:
    """Tokens of the prompts that are no longer than a row that is trained, by their place among the conversations."""
    talks = [row for row in rows if row.messages]
    prompts = {at: prompt_ids(row.messages[:-1], tokenizer, row.tools) for at, row in enumerate(talks)}
    return {at: prompt for at, prompt in prompts.items() if len(prompt) <= recipe.seq_len}


def _stretched(prompt: Sequence[int], length: int) -> list[int]:
    return [*prompt, *[prompt[-1]] * (length - len(prompt))]
