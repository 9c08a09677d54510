"""Public benchmarks: a run's base and what training made of it, on tasks of EleutherAI's lm-eval."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError, OptionError, OutOfMemory, near
from autoft.schema import Record
from autoft.trainer.evaluation.batches import Tell, silent
from autoft.trainer.evaluation.open_run import load_base, load_run_tokenizer, load_trained, open_result
from autoft.trainer.result import RunResult
from autoft.trainer.runtime import environment
from autoft.trainer.runtime.peak_memory import free_memory, is_out_of_memory

Watch = Callable[[str], None]
Results = dict[str, Any]  # what lm_eval.simple_evaluate returns


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore(Record):
    """A figure of a task, a group of tasks, or a task within a group.

    metric: as lm-eval names it; where a task filters its answers in several ways, the filter follows in brackets.
    before: of the base alone, after: with what was trained. before_stderr, after_stderr: standard errors, None where
    lm-eval gives none. higher_is_better: None where the task does not say. rows: None of a group.
    """

    task: str
    metric: str
    before: float
    after: float
    before_stderr: float | None
    after_stderr: float | None
    higher_is_better: bool | None
    rows: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScores(Record):
    """asked_for: the tasks that the names stand for; scores has those within groups too. lm_eval: its version."""

    asked_for: tuple[str, ...]
    scores: tuple[TaskScore, ...]
    lm_eval: str


def judge_tasks(
    folder: Path,
    names: Sequence[str],
    *,
    task_folder: Path | None = None,
    most: int | None = None,
    accept_changes: bool = False,
    watch: Watch = lambda which: None,
    tell: Tell = silent,
) -> TaskScores:
    """Evaluate the run in `folder` by lm-eval, without its adapter and with it.

    names: of tasks, groups or tags; * stands for anything. task_folder: with the user's own task files. most: rows of
    each task, at most. accept_changes: as `open_run` has it. watch: told whose turn it is, "before" or "after".
    Raises: OptionError without lm-eval, or for a name that it does not know; ModelError without a finished run;
    DataError where a task cannot be loaded; OutOfMemory.
    """
    manager, tasks = _tasks(names, task_folder)
    result = open_result(folder, accept_changes=accept_changes, say=tell)
    environment.quiet()

    def judged(model: Any, which: str) -> Results:
        watch(which)
        return _judged(model, folder, result, tasks, manager, most)

    before, after = _both(folder, result, judged)
    from importlib.metadata import version

    return TaskScores(asked_for=tuple(tasks), scores=tuple(_scores(before, after)), lm_eval=version("lm_eval"))


def _tasks(names: Sequence[str], task_folder: Path | None) -> tuple[Any, list[str]]:
    """(lm-eval's TaskManager, the tasks that the names stand for). Raises: OptionError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise OptionError("--tasks needs lm-eval, which is not installed", fix="pip install 'autoft[tasks]'")
    if task_folder is not None and not task_folder.is_dir():
        raise OptionError(f"--task-dir {task_folder}: no such folder", fix="the folder with your task files")
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    tasks: dict[str, None] = {}
    for name in names:
        matches = manager.match_tasks([name])
        if not matches:
            raise OptionError(
                f"--tasks {name}: not a task of lm-eval.{near(name, manager.all_tasks)}",
                fix="lm-eval ls tasks lists them; --task-dir DIR adds your own",
            )
        tasks |= dict.fromkeys(sorted(matches))
    return manager, list(tasks)


def _both(folder: Path, result: RunResult, judged: Callable[[Any, str], Results]) -> tuple[Results, Results]:
    """What `judged` makes of the base and of the trained model."""
    if result.job.recipe.method == "full":
        before = judged(load_base(folder, result), "before")
        free_memory()
        return before, judged(load_trained(folder, result), "after")
    model = load_trained(folder, result)
    with model.disable_adapter():
        before = judged(model, "before")
    return before, judged(model, "after")


def _judged(
    model: Any, folder: Path, result: RunResult, tasks: Sequence[str], manager: Any, most: int | None
) -> Results:
    """lm-eval's results, in batches that are halved while memory runs out. Raises: DataError, OutOfMemory."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer, batch = load_run_tokenizer(folder), result.job.recipe.micro_batch
    while True:
        try:
            shown = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
            evaluated: Results = simple_evaluate(
                model=shown, tasks=list(tasks), task_manager=manager, limit=most, log_samples=False
            )
            return evaluated
        except (OSError, RuntimeError, MemoryError, ValueError, LookupError, TypeError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            if not is_out_of_memory(error):
                raise DataError(
                    f"--tasks {','.join(tasks)}: lm-eval cannot run them: {reason}", fix="choose other tasks"
                ) from error
            if batch == 1:
                raise OutOfMemory(
                    f"out of memory with one row at a time: {reason}", fix="choose tasks with shorter rows"
                ) from error
        free_memory()
        batch //= 2


def _scores(before: Results, after: Results) -> list[TaskScore]:
    """A record for each figure that both have. lm-eval's keys are "acc,none" and "acc_stderr,none"."""
    scores = []
    for task, figures in after["results"].items():
        for key, value in figures.items():
            metric, _, used = key.partition(",")
            if not used or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = f"{metric}_stderr,{used}"
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric if used == "none" else f"{metric} ({used})",
                    before=float(before["results"][task][key]),
                    after=float(value),
                    before_stderr=_number(before["results"][task].get(error)),
                    after_stderr=_number(figures.get(error)),
                    higher_is_better=after["higher_is_better"].get(task, {}).get(metric),
                    rows=after["n-samples"].get(task, {}).get("effective"),
                )
            )
    return scores


def _number(value: object) -> float | None:
    """None for "N/A", which lm-eval writes where it has no standard error."""
    return float(value) if isinstance(value, int | float) else None
