"""Watches the steps of a run: tells of each, keeps account, and warns when the loss behaves oddly."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autoft.trainer.events import Listener, Note, Step
from autoft.trainer.runtime.peak_memory import PeakMemory
from autoft.trainer.runtime.randomness import random_state, set_random_state
from autoft.trainer.storage.progress import Progress

RECENT_STEPS = 20  # of which speed is told
# A spike is a loss above the median of the last fifty by so many times their usual distance from it (the median
# absolute deviation), and by half a nat at least: so rare by chance that it is worth a look.
SPIKE_WINDOW, SPIKE_DEVIATIONS, SPIKE_NATS = 50, 12.0, 0.5
# Dead: between the first and the last so many of at least so many steps, the loss has moved by less than this part.
DEAD_AFTER, DEAD_WINDOW, DEAD_SHARE = 150, 50, 0.002


class Watch(TrainerCallback):  # type: ignore[misc]
    """engine is set once it is made: it has the counters of a step."""

    engine: Any

    def __init__(self, listener: Listener, memory: PeakMemory, progress: Progress) -> None:
        self.listener = listener
        self.memory = memory
        self.progress = progress
        self.loss_watch = LossWatch([loss for _, loss in progress.losses])
        self._recent: deque[tuple[float, int, int, int]] = deque(maxlen=RECENT_STEPS)
        self._began = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # whatever came before has drawn numbers; those of the training are told by the seed and the steps alone
        set_random_state(self.engine.after_step)
        self.progress.total_steps = state.max_steps

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.memory.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        self.engine.after_step = random_state()
        tokens, trained, padded = self.engine.tokens
        self.engine.tokens = [0, 0, 0]
        self._recent.append((seconds, tokens, trained, padded))
        progress = self.progress
        progress.step = state.global_step
        progress.tokens += tokens
        progress.trained_tokens += trained
        progress.padded_tokens += padded
        progress.seconds += seconds
        progress.timed_steps += 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        loss, norm = self.engine.step_loss, float(logs["grad_norm"])
        progress, now = self.progress, self.memory.now_bytes()
        progress.losses.append((state.global_step, loss))
        progress.memory.append((state.global_step, now))
        seconds, tokens, trained, padded = (sum(column) for column in zip(*self._recent, strict=True))
        lower, upper = self._seconds_left(state.max_steps - state.global_step)
        self.listener(
            Step(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=loss,
                learning_rate=float(logs.get("learning_rate", 0.0)),
                grad_norm=norm if math.isfinite(norm) else None,
                step_s=self._recent[-1][0],
                step_trained_tokens=self._recent[-1][2],
                tokens=progress.tokens,
                tokens_per_s=tokens / seconds,
                trained_tokens_per_s=trained / seconds,
                padded_tokens_per_s=padded / seconds,
                seconds_left_lower=lower,
                seconds_left_upper=upper,
                memory_bytes=now,
                peak_bytes=max(self.memory.peak_bytes, now),
                micro_batch=self.engine.fallbacks.micro_batch,
                next_save_s=self.engine.keeper.next_save_s,
            )
        )
        warning = self.loss_watch.add(loss, norm)
        if warning is not None:
            text = f"step {state.global_step}: {warning}"
            progress.events.append({"event": "note", "text": text, "warning": True})
            self.listener(Note(text=text, warning=True))

    def _seconds_left(self, steps: int) -> tuple[float, float]:
        """The mean of the recent steps, give or take twice its standard error."""
        times = [seconds for seconds, *_ in self._recent]
        mean = statistics.fmean(times)
        error = 2 * statistics.stdev(times) / math.sqrt(len(times)) if len(times) > 1 else 0.0
        return steps * max(0.0, mean - error), steps * (mean + error)


class LossWatch:
    """Warns of a loss that jumps and of one that does not move. losses: of the steps before."""

    def __init__(self, losses: list[float] | None = None) -> None:
        self.losses = list(losses or [])
        self._quiet_until = 0
        self._told_of_death = False

    def add(self, loss: float, grad_norm: float) -> str | None:
        """Take in a step; a warning, or None."""
        before = self.losses[-SPIKE_WINDOW:]
        self.losses.append(loss)
        if len(self.losses) > self._quiet_until and len(before) == SPIKE_WINDOW:
            usual = statistics.median(before)
            deviation = statistics.median(abs(each - usual) for each in before)
            if loss - usual > max(SPIKE_DEVIATIONS * deviation, SPIKE_NATS):
                self._quiet_until = len(self.losses) + SPIKE_WINDOW
                return f"the loss jumped to {loss:.3f} from about {usual:.3f}; if it stays there, lower learning_rate"
        if self._told_of_death:
            return None
        if grad_norm == 0:
            self._told_of_death = True
            return "the gradient is zero: this step teaches nothing"
        if len(self.losses) == DEAD_AFTER:
            first = statistics.fmean(self.losses[:DEAD_WINDOW])
            last = statistics.fmean(self.losses[-DEAD_WINDOW:])
            if abs(first - last) < DEAD_SHARE * abs(first):
                self._told_of_death = True
                return (
                    f"the loss has stayed at {first:.3f} for {DEAD_AFTER} steps; raise learning_rate, or see the data"
                )
        return None
