"""A run while it goes: a few lines that stay in their place on a terminal, plain or JSON lines elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from autoft.cli import event_words as words
from autoft.cli.sparkline import Curve
from autoft.render import NARROWEST, Unbreakable, unbreakable
from autoft.trainer.events import Event, Progress, Rehearsed, Stage, Step
from autoft.units import count, duration, size

PLAIN_EVERY_S = 10.0
DRAW_EVERY_S = 0.25
CLOCK_EVERY_S = 1.0  # a picture in which only the clock has moved
SAMPLE_EVERY_S = 1.0
ASK_AGAIN_AFTER_S = (5.0, 60.0, 600.0)  # each try may leave behind a process that the kernel holds
PATIENCE_S = 5.0  # for a terminal that takes nothing when all is done
MOST_WAITING = 10_000  # lines that no terminal has taken; then the oldest go
NAME_WIDTH = 9


class Display:
    """A listener for a run, that writes to `console`.

    All is written by a thread of its own: a terminal that is slow, held by Ctrl-S or gone holds up no training.
    predicted_bytes: the plan's memory, shown beside the memory now; the rehearsal tells it too. total_tokens: of the
    whole training, by which progress is shown; without it, by steps. gpu: look at the GPU once a second. as_json: the
    lines of the record instead, in any case.
    """

    def __init__(
        self,
        console: Console,
        predicted_bytes: int | None = None,
        *,
        total_tokens: int | None = None,
        gpu: bool = False,
        as_json: bool = False,
    ) -> None:
        self.console = console
        self.console.file = unbreakable(console.file)
        self.predicted_bytes = predicted_bytes
        self.total_tokens = total_tokens
        self.as_json = as_json
        self._with_gpu = gpu and not as_json
        self._lines: deque[str] = deque(maxlen=MOST_WAITING)
        self._curve = Curve()
        self._stage: Stage | None = None
        self._now: Step | Progress | None = None
        self._gpu: dict[str, Any] | None = None
        self._began = time.time()
        self._told_at = 0.0
        self._drawn_at = 0.0
        self._changed = threading.Event()
        self._ending = threading.Event()
        self._painter = threading.Thread(target=self._paint, name="display", daemon=True)
        self._live: Live | None = None

    @property
    def broken(self) -> bool:
        """Whether the terminal, or who read from the pipe, is gone."""
        return isinstance(self.console.file, Unbreakable) and self.console.file.broken

    def __enter__(self) -> Display:
        if self.console.is_interactive and self.console.file.isatty() and not self.as_json:
            self._live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
        self._painter.start()
        if self._with_gpu:
            threading.Thread(target=self._sample, name="gpu sample", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None and kind is not None:
            self._live.transient = False  # how far it came stays to be seen
        self._ending.set()
        self._painter.join(PATIENCE_S)

    def __call__(self, event: Event) -> None:
        self.tell(event, time.time())

    def tell(self, event: Event, at: float) -> None:
        """Show what happened at that time (seconds since the epoch)."""
        if self.as_json:
            self._tell_json(event)
            return
        if isinstance(event, Stage):
            self._stage, self._now, self._began = event, None, at
            self._told_at = time.monotonic()
        elif isinstance(event, Rehearsed) and event.predicted_bytes is not None:
            self.predicted_bytes = event.predicted_bytes
        if isinstance(event, Step):
            self._curve.add(event.loss)
            line = words.step_parts(event, self.predicted_bytes, self._gpu)
            self._advance(event, event.step == event.total_steps, line)
        elif isinstance(event, Progress):
            self._advance(event, event.done == event.total, [f"{event.done}/{event.total} answers"])
        else:
            self._lines.extend(words.lines(event))
        self._changed.set()

    def _tell_json(self, event: Event) -> None:
        from autoft.trainer.storage.event_log import as_line

        if not isinstance(event, Progress):
            self._lines.append(as_line(event))

    def _advance(self, event: Step | Progress, is_last: bool, parts: list[str]) -> None:
        self._now = event
        is_due = self._live is None and time.monotonic() - self._told_at >= PLAIN_EVERY_S
        if is_due or (is_last and (self._live is None or isinstance(event, Step))):
            self._told_at = time.monotonic()
            self._lines.append(words.fitted(parts, self.console.width))

    def _paint(self) -> None:
        if self._live is not None:
            self._live.start()
            self.console.show_cursor(True)  # a run that is killed leaves a terminal that can be used
        while not self._ending.wait(DRAW_EVERY_S):
            self._draw()
        self._draw()
        if self._live is not None:
            self._live.stop()

    def _draw(self) -> None:
        waiting = [self._lines.popleft() for _ in range(len(self._lines))]
        if self._live is None:
            if waiting:
                self.console.file.write("\n".join([*waiting, ""]))
                self.console.file.flush()
            return
        self._fit_terminal()
        with self.console:  # written at once
            if waiting:
                self.console.print(Text("\n".join(waiting)))
            if waiting or self._changed.is_set() or time.monotonic() - self._drawn_at >= CLOCK_EVERY_S:
                self._changed.clear()
                self._drawn_at = time.monotonic()
                self._live.update(Group(*self._picture()), refresh=True)

    def _fit_terminal(self) -> None:
        with suppress(OSError, ValueError):
            self.console.width = max(NARROWEST, os.get_terminal_size(self.console.file.fileno()).columns)

    def _picture(self) -> list[Text]:
        """The lines that stay in their place: a name, then its parts, each line within the terminal's width."""
        stage, now = self._stage, self._now
        if stage is None:
            return []
        took = f"{duration(max(0.0, time.time() - self._began))} so far"
        name = words.STAGES.get(stage.name, stage.name)
        if isinstance(now, Step):
            rows = [(name, self._progress_parts(now)), *self._step_rows(now, took)]
        elif isinstance(now, Progress):
            share = now.done / now.total if now.total else 1.0
            rows = [(name, [self._bar(share), f"{now.done}/{now.total} answers", took])]
        else:
            rows = [(name, [took])]
        width = self.console.width - NAME_WIDTH - 2
        lines = []
        for name, parts in rows:
            for number, line in enumerate(words.wrapped(parts, width)):
                label = f"{'' if number else name:<{NAME_WIDTH}}  "
                lines.append(Text.assemble((label, "bold"), line, no_wrap=True, overflow="crop"))
        return lines

    def _progress_parts(self, step: Step) -> list[str]:
        share = step.tokens / self.total_tokens if self.total_tokens else step.step / step.total_steps
        tokens = count(step.tokens) + (f" of {count(self.total_tokens)}" if self.total_tokens else "")
        return [self._bar(min(1.0, share)), f"{tokens} tokens", f"step {step.step:,} of {step.total_steps:,}"]

    def _step_rows(self, step: Step, took: str) -> list[tuple[str, list[str]]]:
        curve = self._curve.line(self._narrow(24, 12), ascii_only=self._ascii_only)
        smoothed = step.loss if self._curve.now is None else self._curve.now
        memory = [f"{size(step.memory_bytes)} now", f"peak {size(step.peak_bytes)}"]
        if self.predicted_bytes is not None:
            memory.append(f"{size(self.predicted_bytes)} predicted")
        rows = [
            (
                "Loss",
                [
                    f"{smoothed:.3f} {curve}".strip(),
                    f"this step {step.loss:.3f}",
                    f"learning rate {step.learning_rate:.2g}",
                    *words.gradient(step),
                ],
            ),
            (
                "Speed",
                [
                    f"{step.tokens_per_s:,.0f} tokens/s",
                    f"{step.trained_tokens_per_s:,.0f} trained",
                    f"{step.padded_tokens_per_s:,.0f} with padding",
                ],
            ),
            ("Memory", memory),
            ("GPU", words.gpu_parts(self._gpu)),
            ("Time", [*words.left(step), took, *words.next_save(step)]),
        ]
        return [row for row in rows if row[1]]

    def _bar(self, share: float) -> str:
        cells = self._narrow(24, 10)
        done = round(share * cells)
        full, empty = ("#", "-") if self._ascii_only else ("█", "·")
        return f"{full * done}{empty * (cells - done)} {share:.0%}"

    def _narrow(self, wide: int, narrow: int) -> int:
        return wide if self.console.width >= 70 else narrow

    @property
    def _ascii_only(self) -> bool:
        return self.console.options.ascii_only

    def _sample(self) -> None:
        """The GPU that the run sees, once a second; nothing where there is none.

        A driver that fails to answer, as on an overloaded machine, is asked again after ASK_AGAIN_AFTER_S.
        """
        from autoft.profiles.detect import sampler

        for pause in (*ASK_AGAIN_AFTER_S, 0):
            with sampler() as look:
                while not self._ending.is_set():
                    sample = look()
                    self._gpu = next(iter(sample["gpus"]), None)
                    if sample["driver_failure"]:
                        break
                    if self._gpu is None:
                        return
                    self._changed.set()
                    self._ending.wait(SAMPLE_EVERY_S)
            if self._ending.wait(pause):
                return
