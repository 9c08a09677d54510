"""Gates: what would have a run learn something else than its data says, found before the first step.

Each gate is one function that raises with a reason. The loss and the neighbours are asked of the real model, by the
functions that train it. S sequence.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.errors import DataError, ModelError, TrainingError
from autoft.trainer.adapters import kind_of
from autoft.trainer.checks.reference_loss import Reference, base_loss
from autoft.trainer.data.fit import OTHER_PROMPT, SAMPLED_ROWS, follows_answer, is_prompt_of
from autoft.trainer.data.prepare import Prepared
from autoft.trainer.data.shape import Row
from autoft.trainer.data.tokens import Example, asked_ids
from autoft.trainer.job import Job
from autoft.trainer.objectives import objective_of
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.recipe import Recipe

if TYPE_CHECKING:
    import torch

SEEN_EXAMPLES = 1000  # among which the few short ones are looked for that go through the model
SHORT_TOKENS = 128
ENOUGH_TRAINED = 16
# Between the loss as training computes it and that of the base alone, in parts of the standard deviation of a token's
# loss, over 64 trained tokens. Measured on the starter and tiny models of six families on a CPU, the worst of lora,
# full, nf4 and int8: float32 3e-6, float16 3e-4, bfloat16 4e-3. Real faults, on the starter: a prompt that is trained
# too 0.14, packed examples that see each other 0.23, labels shifted twice 3.5
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
TOLERANCE_TOKENS = 64  # noise of a mean over fewer is larger, by the root of how many fewer
LEAST_SPREAD = 0.1  # nats; below it the rounding of the loss itself is seen
# Of the tolerance, for what another example in the row changes: nothing at all in any of the measurements above, some
# where a GPU multiplies in another order. In 8 bits the others have a say in which inputs are rounded: all of it
NEIGHBOUR_PART = 0.1


def check_data(prepared: Prepared, job: Job) -> None:
    """The gates that need no model. Raises: DataError, ModelError."""
    _new_tokens_are_where_planned(prepared, job)
    _every_example_is_trained(prepared)
    rows = list(islice(_rows(prepared), SAMPLED_ROWS))
    if rows[0].messages:  # texts have neither prompts nor answers
        _prompts_are_as_trained(prepared, rows, job.model)


def check_model(model: Any, prepared: Prepared, job: Job) -> None:
    """The gates that ask the model that `build_model` has built for `job`, its adapter still fresh.

    Weights, gradients, modes and random numbers are afterwards what they were.
    Raises: ModelError, TrainingError.
    """
    import torch

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    refuse_unknown_tokens(prepared, min(len(embeddings.weight), len(head.weight)), job.model)
    examples = _short_examples(prepared.train.examples, job.recipe)
    if job.recipe.method != "full":
        _trained_tokens_are_known(head, examples, prepared.tokenizer, job.model)
    cuda = model.device.type == "cuda"
    with torch.random.fork_rng([model.device] if cuda else []), _without_chance(model):
        reference, pad_id = base_loss(model, examples), prepared.tokenizer.pad_token_id
        if job.recipe.packing and len(examples) > 1:
            _neighbours_are_apart(model, examples, pad_id, job.recipe, reference)
        if job.recipe.method == "full" or kind_of(job.recipe).on_layers:
            _loss_is_the_base_s(model, examples, pad_id, job.recipe, reference)
        _future_is_unseen(model, examples[0], pad_id, replace(job.recipe, packing=False), reference)
    if cuda:
        # as after loading: the steps are to find the device as the rehearsal does
        torch.cuda.empty_cache()


def refuse_unknown_tokens(prepared: Prepared, num_embeddings: int, model: str) -> None:
    """Raises: ModelError when a token of the data has no embedding: the tokenizer is another model's.

    A tokenizer may know more tokens than the model has, such as Gemma 3's of an image, as long as none occurs.
    """
    tokenizer = prepared.tokenizer
    examples = (*prepared.train.examples, *prepared.heldout)
    largest = max(tokenizer.pad_token_id, tokenizer.eos_token_id, *(int(np.max(e.input_ids)) for e in examples))
    if largest >= num_embeddings:
        raise ModelError(
            f"{model}: its tokenizer gives token {largest}, and the model has {num_embeddings} embeddings: "
            "they do not belong together",
            fix="put the model's own tokenizer files beside its config.json",
        )


def _rows(prepared: Prepared) -> Iterator[Row]:
    """The rows that are trained on; of conversations each has one example, in the same order."""
    left_out = frozenset(prepared.train.too_long)
    return (row for row in prepared.splits.train if row.where not in left_out)


def _new_tokens_are_where_planned(prepared: Prepared, job: Job) -> None:
    recipe = job.recipe
    if not recipe.new_tokens:
        return
    ids = prepared.tokenizer.convert_tokens_to_ids(list(recipe.new_tokens))
    if tuple(ids) != recipe.new_token_ids:
        raise ModelError(
            f"{job.model}: its tokenizer numbers new_tokens from {ids[0]}, the plan from {recipe.first_new_id}",
            fix="plan again with this model",
        )


def _every_example_is_trained(prepared: Prepared) -> None:
    """The first token of a sequence is predicted from nothing: its label does not count."""
    for number, example in enumerate(prepared.train.examples):
        if not _last_trained(example):
            row = next(islice(_rows(prepared), number, None))
            raise DataError(
                f"{row.where}: no token of this row would be trained: nothing comes before its only one",
                fix="give it an answer, or remove the row",
            )


def _last_trained(example: Example) -> int:
    """The place of the last token that is trained; 0 where there is none but the first."""
    return next((at for at in range(len(example.labels) - 1, 0, -1) if example.labels[at] != IGNORED), 0)


def _prompts_are_as_trained(prepared: Prepared, rows: Sequence[Row], model: str) -> None:
    """What the saved tokenizer makes of a prompt is what was trained up to the answer (trainer/data/fit.py)."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="autoft-tokenizer-") as folder:
        prepared.tokenizer.save_pretrained(folder)
        try:
            saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises of many kinds
            raise ModelError(
                f"{model}: its tokenizer cannot be loaded again once saved: {' '.join(str(error).split())[:160]}",
                fix="use a tokenizer that transformers saves whole, the model's own tokenizer.json",
            ) from error
    for row, example in zip(rows, prepared.train.examples, strict=False):
        prompt = asked_ids(row, saved, prepared.stops)
        if is_prompt_of(prompt, example, follows_answer=follows_answer(row)):
            continue
        if prompt != asked_ids(row, prepared.tokenizer, prepared.stops):
            raise ModelError(
                f"{model}: its tokenizer reads a prompt otherwise once it was saved and loaded again, that of "
                f"{row.where} for one: {OTHER_PROMPT}",
                fix="use a tokenizer that transformers saves whole, the model's own tokenizer.json",
            )


def _short_examples(examples: Sequence[Example], recipe: Recipe) -> list[Example]:
    """One or two, as many as the recipe puts side by side, short and yet with enough that is trained."""
    seen = examples[:SEEN_EXAMPLES]
    wanted = 2 if recipe.packing or recipe.micro_batch > 1 else 1
    most = min(SHORT_TOKENS, recipe.seq_len // 2 if recipe.packing else recipe.seq_len)
    chosen = heapq.nsmallest(wanted, seen, key=lambda e: (e.trained_tokens < ENOUGH_TRAINED, len(e.input_ids)))
    return [_cut(example, most) for example in chosen]


def _cut(example: Example, most: int) -> Example:
    """At most so many tokens of it, its first among them: the next ones, or the last that are trained."""
    begin = 1
    if len(example.input_ids) > most and all(label == IGNORED for label in example.labels[1:most]):
        begin = _last_trained(example) - most + 2
    kept = [0, *range(begin, min(begin + most - 1, len(example.input_ids)))]
    return Example([example.input_ids[at] for at in kept], [example.labels[at] for at in kept])


def _trained_tokens_are_known(head: Any, examples: Sequence[Example], tokenizer: Any, model: str) -> None:
    """A token whose row of the head is zeros has a logit of 0 whatever an adapter does."""
    ids = sorted({label for example in examples for label in example.labels if label != IGNORED})
    known = head.weight[ids].any(dim=-1).tolist()
    unknown = [token for token, is_known in zip(ids, known, strict=True) if not is_known]
    if unknown:
        raise ModelError(
            f"{model}: {tokenizer.convert_ids_to_tokens(unknown[0])} is a token of the tokenizer, but the model has "
            "nothing but zeros for it: an adapter cannot learn to write it",
            fix="use the tokenizer of these very weights, or --method full",
        )


def _loss_is_the_base_s(
    model: Any, examples: Sequence[Example], pad_id: int, recipe: Recipe, reference: Reference
) -> None:
    if not math.isfinite(reference.loss):
        raise TrainingError(
            f"before the first step the loss of the base alone is {reference.loss}: its weights are damaged, or too "
            f"large for {recipe.base_dtype}",
            fix="download the model again, or --set base_dtype=float32",
        )
    loss = _loss(model, examples, pad_id, recipe)
    if not abs(loss - reference.loss) <= _tolerance(examples, recipe, reference):
        raise TrainingError(
            f"before the first step the loss is {loss:.4f} as training computes it, and {reference.loss:.4f} of the "
            "base alone, computed plainly on the same rows: this machine or these libraries would train something else",
            fix=_other_ways(recipe),
        )


def _future_is_unseen(model: Any, example: Example, pad_id: int, recipe: Recipe, reference: Reference) -> None:
    """What comes later changes nothing of the loss of what came before."""
    half = len(example.input_ids) // 2
    if half < 2:
        return
    labels = [IGNORED, *example.input_ids[1:half], *[IGNORED] * (len(example.labels) - half)]
    early, later = Example(example.input_ids, labels), example.input_ids[half:]
    other = Example([*example.input_ids[:half], *[example.input_ids[0]] * len(later)], labels)
    first, second = (_loss(model, [each], pad_id, recipe) for each in (early, other))
    if not abs(first - second) <= _tolerance([early], recipe, reference):
        raise TrainingError(
            f"tokens see those after them: with another end the loss of an example's first half is {second:.4f} "
            f"instead of {first:.4f}, so the model would learn to copy, not to answer",
            fix="choose a causal language model",
        )


def _neighbours_are_apart(
    model: Any, examples: Sequence[Example], pad_id: int, recipe: Recipe, reference: Reference
) -> None:
    """Another example in the same row changes nothing of an example's loss."""
    part = 1.0 if recipe.quant_type == "int8" else NEIGHBOUR_PART
    for at, name in ((1, "before"), (0, "after")):
        row = [e if i == at else Example(e.input_ids, [IGNORED] * len(e.labels)) for i, e in enumerate(examples)]
        other = [e if i == at else Example(e.input_ids[::-1], e.labels) for i, e in enumerate(row)]
        first, second = _loss(model, row, pad_id, recipe), _loss(model, other, pad_id, recipe)
        if not abs(first - second) <= part * _tolerance([examples[at]], recipe, reference):
            raise TrainingError(
                f"packed examples attend to each other: changing the one {name} it changed an example's loss from "
                f"{first:.4f} to {second:.4f}",
                fix="--set packing=false",
            )


def _loss(model: Any, examples: Sequence[Example], pad_id: int, recipe: Recipe) -> float:
    """What is reported of held-out rows, whatever is minimised: the reference is of that."""
    loss = objective_of(recipe).metrics["loss"](model, _batch(examples, pad_id, recipe, model.device), recipe)
    return float(loss.detach())


def _batch(examples: Sequence[Example], pad_id: int, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """A micro-batch as training makes it: padded, or one row of which the end is padding."""
    objective = objective_of(recipe)
    if recipe.packing:
        tokens = sum(len(example.input_ids) for example in examples)
        width = math.ceil((tokens + 1) / recipe.pad_multiple) * recipe.pad_multiple
        rows = [objective.row(examples, recipe, pad_id, width)]
    else:
        rows = [objective.row([example], recipe, pad_id) for example in examples]
    batch = objective.collate(rows, recipe, pad_id)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _tolerance(examples: Sequence[Example], recipe: Recipe, reference: Reference) -> float:
    """In nats a trained token."""
    trained = sum(label != IGNORED for example in examples for label in example.labels[1:])
    part = TOLERANCE["bfloat16"] if recipe.quant_type == "int8" else TOLERANCE[recipe.base_dtype]
    return part * max(reference.spread, LEAST_SPREAD) * math.sqrt(max(1.0, TOLERANCE_TOKENS / trained))


def _other_ways(recipe: Recipe) -> str:
    """What to change, the likeliest first."""
    ways = ["--set packing=false"] if recipe.packing else []
    if recipe.quant_type is not None:
        ways.append("--method lora (`autoft doctor` looks at the quantized kernels)")
    if recipe.loss == "fused":
        ways.append(f"--set loss={objective_of(recipe).losses[-1]}")
    if recipe.base_dtype == "float16":
        ways.append("--set base_dtype=float32")
    return ", or ".join([*ways, "the tested versions of the libraries (`autoft doctor` names them)"])


@contextmanager
def _without_chance(model: Any) -> Iterator[None]:
    """Inside the block nothing is dropped or shaken at random, and all else is as in training."""
    changed = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and value and _is_chance(module, name)
    ]
    for module, name, _ in changed:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def _is_chance(module: Any, name: str) -> bool:
    """nn.Dropout's p, and what transformers' models name attention_dropout, layerdrop, router_jitter_noise."""
    import torch

    return "drop" in name or "jitter" in name or (name == "p" and isinstance(module, torch.nn.Dropout))
