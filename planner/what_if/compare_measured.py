"""A comparison, measured: a few real steps of each method here, and what quantization costs the base in loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autoft.errors import ModelError, TrainingError
from autoft.planner.what_if.compare import Comparison, Measured
from autoft.planner.what_if.context import Frame
from autoft.trainer.data.tokens import Example
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.measure import Task, measure, random_weights, weights_at_hand
from autoft.trainer.sources.resolve import resolve

# What is measured is kept small. A CPU trains some hundred tokens of a small model in a second.
CPU_SEQ_LEN = 128
HELDOUT_ROWS = {"cpu": 8, "cuda": 100}


def measured(found: Comparison, frame: Frame, *, steps: int, say: Callable[[str], None]) -> Comparison:
    """`found` with what each side really takes here. say: told, in a line, what goes on.

    On a CPU steps are of one row of at most CPU_SEQ_LEN tokens, and so are held-out rows. Without weights on this
    machine steps run on random ones and there is no loss.
    Raises: ModelError where the target is a GPU that PyTorch does not reach; OutputError without room on the disk.
    """
    device, env = frame.target.device, _environment(frame)
    heldout = _heldout(frame)
    with _weights(frame, say) as (folder, real):
        sides = []
        for side in found.sides:
            if side.recipe is not None:
                say(f"measuring {side.label}: {steps} steps")
                task = Task(
                    model=frame.request.model,
                    weights=str(folder),
                    recipe=_recipe(side.recipe, frame),
                    device=device,
                    steps=steps,
                    pad_id=frame.prepared.tokenizer.pad_token_id if frame.prepared else 0,
                    heldout=tuple((tuple(e.input_ids), tuple(e.labels)) for e in heldout) if real else (),
                )
                side = replace(side, measured=_measured(frame, task, heldout, env))
            sides.append(side)
    return replace(found, sides=tuple(sides), notes=(*found.notes, *_notes(frame, heldout, real=real)))


def _measured(frame: Frame, task: Task, heldout: Sequence[Example], env: dict[str, str]) -> Measured:
    recipe = task.recipe
    predicted = frame.estimator.estimate(recipe)
    known = {
        "recipe": recipe,
        "predicted_bytes": predicted.peak_allocated_bytes,
        "predicted_step_s": predicted.step_time_s,
    }
    if predicted.fits == "no":
        return Measured(**known, failed="it does not fit here")  # type: ignore[arg-type]
    task = replace(task, rows=_rows(frame, recipe))
    try:
        steps = measure(task, env)
    except TrainingError as error:
        return Measured(**known, failed=error.what)  # type: ignore[arg-type]
    return Measured(
        **known,  # type: ignore[arg-type]
        steps=steps,
        heldout_rows=len(task.heldout),
        heldout_tokens=sum(e.trained_tokens for e in heldout) if task.heldout else 0,
        perplexity=math.exp(steps.heldout_loss) if steps.heldout_loss is not None else None,
    )


def _recipe(recipe: Recipe, frame: Frame) -> Recipe:
    """What is measured: on a GPU the recipe itself, unpacked; on a CPU a small step of it."""
    recipe = replace(recipe, packing=False)
    if frame.target.device == "cuda":
        return recipe
    return replace(recipe, micro_batch=1, seq_len=min(recipe.seq_len, CPU_SEQ_LEN))


def _rows(frame: Frame, recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """The user's own tokens, end to end, in the recipe's shape; as often as it takes. () without data."""
    if frame.prepared is None:
        return ()
    needed = recipe.micro_batch * recipe.seq_len
    tokens: list[int] = []
    while len(tokens) < needed:
        for example in frame.prepared.train.examples:
            tokens += example.input_ids
            if len(tokens) >= needed:
                break
    return tuple(tuple(tokens[row * recipe.seq_len : (row + 1) * recipe.seq_len]) for row in range(recipe.micro_batch))


def _heldout(frame: Frame) -> list[Example]:
    """The first held-out rows that are not too long to be looked at quickly."""
    if frame.prepared is None:
        return []
    longest = CPU_SEQ_LEN if frame.target.device == "cpu" else frame.seq_len
    short = [example for example in frame.prepared.heldout if len(example.input_ids) <= longest]
    return short[: HELDOUT_ROWS[frame.target.device]]


@contextmanager
def _weights(frame: Frame, say: Callable[[str], None]) -> Iterator[tuple[Path, bool]]:
    """(a folder of weights, whether they are the model's own)."""
    ref = resolve(frame.request.model)
    folder = weights_at_hand(ref)
    if folder is not None:
        yield folder, True
        return
    say(f"no weights of {ref.name} here: random ones are made")
    with random_weights(ref, frame.estimator.shape.total_params) as made:
        yield made, False


def _environment(frame: Frame) -> dict[str, str]:
    """Of the processes that measure: only the target's GPU is visible. Raises: ModelError where there is none."""
    gpu = frame.target.gpu
    if gpu is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        raise ModelError(
            f"{frame.target.name} is here, and PyTorch does not reach it", fix="autoft doctor, or --gpu cpu"
        )
    return {"CUDA_VISIBLE_DEVICES": gpu.uuid} if gpu.uuid is not None else {}


def _notes(frame: Frame, heldout: Sequence[Example], *, real: bool) -> list[str]:
    notes = []
    if frame.target.device == "cpu":
        notes.append(
            f"measured: on a CPU steps are of one row of at most {CPU_SEQ_LEN} tokens, and a peak is the growth of the "
            "process, libraries and all, where the prediction is of tensors alone"
        )
    if not real:
        notes.append("measured: no weights of this model are here, so the steps ran on random ones; no loss was taken")
    elif heldout:
        tokens = sum(example.trained_tokens for example in heldout)
        notes.append(
            f"measured: the base's loss is of {tokens:,} trained tokens in the first {len(heldout)} held-out rows"
            + (f" of at most {CPU_SEQ_LEN} tokens" if frame.target.device == "cpu" else "")
        )
    else:
        notes.append("measured: no held-out rows, so there is no loss to compare; --data brings them")
    return notes
