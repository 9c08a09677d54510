"""A run while it goes: a live line on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from autoft.trainer.events import Event, Note, Stage, Step
from autoft.trainer.events import Progress as Done
from autoft.units import duration, size

PLAIN_EVERY_S = 10.0
STAGES = {"model": "Loading", "evaluate": "Evaluating", "train": "Training", "save": "Saving"}


class Display:
    """A listener for a run. predicted_bytes: the plan's memory, shown beside the memory now."""

    def __init__(self, console: Console, predicted_bytes: int | None = None) -> None:
        self.console = console
        self.predicted_bytes = predicted_bytes
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told_at = 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            columns = [TextColumn("{task.description}")]
            bar = [BarColumn(bar_width=20)] if self.console.width >= 70 else []
            self._progress = Progress(*columns, *bar, console=self.console, transient=True)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self._line(f"Note: {event.text}")
        elif isinstance(event, Stage):
            self._begin(event)
        elif isinstance(event, Step):
            self._advance(event.step, event.total_steps, self._step_text(event))
        elif isinstance(event, Done):
            self._advance(event.done, event.total, self._done_text(event))

    def _begin(self, stage: Stage) -> None:
        self._told_at = time.monotonic()
        text = f"{STAGES.get(stage.name, stage.name)} {stage.detail}".strip()
        self._line(text)
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(text, total=None)

    def _advance(self, done: int, total: int, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=text)
        elif done == total or time.monotonic() - self._told_at >= PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            self._line(text)

    def _step_text(self, step: Step) -> str:
        memory = size(step.memory_bytes)
        if self.predicted_bytes is not None:
            memory += f" of {size(self.predicted_bytes)} predicted"
        parts = [f"step {step.step}/{step.total_steps}", f"loss {step.loss:.3f}", f"{duration(step.seconds_left_upper)} left"]
        if self.console.width >= 70:
            parts += [f"{step.tokens_per_s:,.0f} tokens/s", memory]
        return ", ".join(parts)

    def _done_text(self, done: Done) -> str:
        return f"{done.done}/{done.total} answers"

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)
