"""What does a recipe really take here? A few steps of it in a process of its own, so that memory is clean.

The step is the trainer's: its builders, loss and optimizer. `measure` starts the process; `python -m
autoft.trainer.run.measure TASK RESULT` is that process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autoft.errors import FileFormatError, ModelError, TrainingError
from autoft.schema import Record
from autoft.trainer.job import Device
from autoft.trainer.recipe import Recipe
from autoft.trainer.runtime import environment
from autoft.trainer.runtime.peak_memory import PeakMemory, resident_bytes
from autoft.trainer.sources.resolve import WEIGHTS_TO_FETCH, ModelRef, fetch, load_config, resolve
from autoft.trainer.storage.run_folder import check_disk

LEARNING_RATE = 1e-4  # any: what is measured does not depend on it


@dataclass(frozen=True, kw_only=True, slots=True)
class Task(Record):
    """steps: measured ones; one before them is not. weights: folder of safetensors.

    rows: token ids to train on, as many and as long as the recipe says; () is any tokens.
    heldout: pairs of token ids and labels, whose loss is taken before the first step. pad_id: fills rows up.
    """

    model: str
    weights: str
    recipe: Recipe
    device: Device
    steps: int
    pad_id: int = 0
    rows: tuple[tuple[int, ...], ...] = ()
    heldout: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps(Record):
    """What was measured.

    peak_bytes, peak_reserved_bytes: as of a run (trainer/result.py), over the measured steps.
    step_time_s: the median of step_times_s, each a forward, a backward and an optimizer step.
    heldout_loss: nats a trained token of the base, before any training; None without held-out rows.
    """

    peak_bytes: int
    peak_reserved_bytes: int | None = None
    step_time_s: float
    step_times_s: tuple[float, ...]
    losses: tuple[float, ...]
    heldout_loss: float | None = None
    load_s: float


def measure(task: Task, env: Mapping[str, str] | None = None) -> Steps:
    """Measure in a new process. env: of it, beside this one's. Raises: TrainingError with its last words."""
    with tempfile.TemporaryDirectory(prefix="autoft-measure-") as folder:
        task_file, answered = Path(folder, "task.json"), Path(folder, "result.json")
        task_file.write_text(json.dumps(task.to_dict()), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "autoft.trainer.run.measure", str(task_file), str(answered)],
            env={**environment.of_child(), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and answered.is_file():
            return Steps.from_dict(json.loads(answered.read_text(encoding="utf-8")))
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else f"exit code {done.returncode}"
    raise TrainingError(f"measuring {task.recipe.method} failed: {last}", fix="plan without --measure")


def weights_at_hand(ref: ModelRef) -> Path | None:
    """The folder of the model's weights where they are on this machine; nothing is downloaded for it."""
    try:
        if ref.kind in ("hub", "catalogue"):
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import LocalEntryNotFoundError

            try:
                folder = Path(
                    snapshot_download(str(ref.hub_id), allow_patterns=WEIGHTS_TO_FETCH, local_files_only=True)
                )
            except LocalEntryNotFoundError:
                return None
            return folder if any(folder.glob("*.safetensors")) else None
        return fetch(ref)
    except ModelError:
        return None


@contextmanager
def random_weights(ref: ModelRef, num_params: int) -> Iterator[Path]:
    """A folder with random weights of the model's shape inside the block: enough to time a step, not to judge one.

    Raises: OutputError where the disk, ModelError where the memory has no room for them.
    """
    import psutil
    import torch

    from autoft.trainer.sources.suitable import auto_class

    needed = 2 * num_params
    check_disk(Path(tempfile.gettempdir()), needed, "a copy of the model with random weights")
    if 1.2 * needed > psutil.virtual_memory().available:
        raise ModelError(
            f"{ref.name}: no weights here, and random ones would need {needed / 2**30:.0f} GiB of RAM",
            fix="fetch the weights first, or compare without --measure",
        )
    with tempfile.TemporaryDirectory(prefix="autoft-random-") as folder:
        environment.quiet()
        torch.manual_seed(0)
        config = load_config(ref)
        model = auto_class(config).from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        model.save_pretrained(folder)
        del model
        yield Path(folder)


def run(task: Task) -> Steps:
    """The steps, in this process."""
    import torch

    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives import objective_of
    from autoft.trainer.optimizers.optim import build_optimizer, faster_weights

    environment.quiet()
    recipe, weights = task.recipe, Path(task.weights)
    baseline, began = resident_bytes(), time.perf_counter()
    config = load_config(resolve(task.model), weights)
    model = build_model(recipe, config=config, weights=weights, device=task.device)
    load_s = time.perf_counter() - began
    heldout_loss = _heldout_loss(task, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(trained, recipe, learning_rate=LEARNING_RATE, faster=faster_weights(model, recipe))
    scaler = torch.amp.GradScaler(task.device, enabled=recipe.autocast and recipe.base_dtype == "float16")
    batch = {name: tensor.to(task.device) for name, tensor in _batch(task, config).items()}
    losses, times = [], []

    def step() -> None:
        began = time.perf_counter()
        loss = objective_of(recipe).loss(model, batch, recipe)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))  # waits for the device
        if task.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)

    step()
    with PeakMemory(task.device, baseline) as memory:
        for _ in range(task.steps):
            step()
    return Steps(
        peak_bytes=memory.peak_bytes,
        peak_reserved_bytes=memory.peak_reserved_bytes,
        step_time_s=statistics.median(times[1:]),
        step_times_s=tuple(times[1:]),
        losses=tuple(losses[1:]),
        heldout_loss=heldout_loss,
        load_s=load_s,
    )


def _batch(task: Task, config: Any) -> dict[str, Any]:
    """Rows of exactly the recipe's shape, every token of which is trained, as a rehearsal takes them."""
    import torch

    from autoft.trainer.objectives import objective_of

    shape = task.recipe.micro_batch, task.recipe.seq_len
    if task.rows:
        ids_BS = torch.tensor(task.rows, dtype=torch.long)
    else:
        ids_BS = torch.randint(config.get_text_config().vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return objective_of(task.recipe).dummy_batch(task.recipe, ids_BS)


def _heldout_loss(task: Task, model: Any) -> float | None:
    """Of the base: a fresh adapter adds nothing to it."""
    if not task.heldout:
        return None
    from autoft.trainer.data.tokens import Example
    from autoft.trainer.evaluation.evaluate import mean_loss

    examples = [Example(list(ids), list(labels)) for ids, labels in task.heldout]
    return mean_loss(model, SimpleNamespace(pad_token_id=task.pad_id), examples, task.recipe)


def _main(asked: str, answered: str) -> None:
    environment.prepare()
    task = Task.from_dict(json.loads(Path(asked).read_text(encoding="utf-8")))
    Path(answered).write_text(json.dumps(run(task).to_dict()), encoding="utf-8")


if __name__ == "__main__":
    code = 0
    try:
        _main(*sys.argv[1:])
    except (FileFormatError, ModelError, RuntimeError, MemoryError, OSError) as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        code = 1
    # Right after a backward Python's own end may abort: PyTorch's device threads then ask for a lock that is gone
    sys.stderr.flush()
    os._exit(code)
