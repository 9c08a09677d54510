"""How is the NVIDIA driver asked without waiting for it for ever? In a process of its own (nvml.py), with deadlines.

A driver in trouble may keep a process in the kernel, where no signal reaches it, or crash it. Then whoever asked still
answers, with what was told until then and with the reason for the rest.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from autoft.errors import OptionError
from autoft.profiles.hardware import in_words

WORKER = Path(__file__).with_name("nvml.py")
STOPPED = "the driver stopped answering before"
TIMEOUT_VARIABLE = "AUTOFT_DRIVER_TIMEOUT_S"
# Without persistence mode the driver wakes each card first, which takes a second or two.
TIMEOUT_S = 10.0
LONGEST_SILENCES = 6  # so many time-outs is the whole round given


@dataclass(slots=True)
class Answers:
    """What the driver told in one round. WHERE is as in nvml.py.

    values, reasons: by WHERE, then by field: the answer, or why there is none. failure: why the round ended early.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    failure: str | None = None

    def value(self, where: str, name: str) -> Any:
        return self.values.get(where, {}).get(name)

    def reason(self, where: str, name: str) -> str | None:
        """Why a value is missing; None where it is there."""
        if self.value(where, name) is not None:
            return None
        return self.reasons.get(where, {}).get(name, STOPPED if self.failure else None)


class Driver:
    """The process that asks. It starts at once and gets ready while its maker does other things."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """timeout_s: the longest that one answer may take.

        Raises: OptionError when AUTOFT_DRIVER_TIMEOUT_S is no such time.
        """
        self._timeout_s = _timeout_s() if timeout_s is None else timeout_s
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:
            self._failure = f"no process could be started to ask the NVIDIA driver: {error.strerror}"
            return
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True)
        self._reader.start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process: by itself when it answers, else at once. One that the kernel holds is left behind."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(0 if self._failure else self._timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        self._reader.join(0.5)  # it closes the pipe, which ends with the process

    def ask(self, what: Literal["all", "moment"]) -> Answers:
        """One round of questions. After a failure there is no other round: each ends with the same reason."""
        answers = Answers(failure=self._failure)
        if self._process is None or self._failure is not None:
            return answers
        assert self._process.stdin is not None
        with suppress(OSError):  # it ended: what it said before is read all the same
            self._process.stdin.write(f"{what}\n".encode())
        question, last = "its library to start", time.monotonic() + LONGEST_SILENCES * self._timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, min(self._timeout_s, last - time.monotonic())))
            except queue.Empty:
                self._failure = (
                    f"the NVIDIA driver did not answer within {self._timeout_s:g} s (asked for {question}); "
                    f"{TIMEOUT_VARIABLE} waits longer"
                )
                break
            if line is None:
                self._failure = self._how_it_ended(question)
                break
            kind, *words = json.loads(line)
            if kind == "end":
                break
            if kind == "ask":
                question = _in_words(*words)
            else:
                where, name, value = words
                (answers.values if kind == "is" else answers.reasons).setdefault(where, {})[name] = value
        answers.failure = self._failure
        return answers

    def _how_it_ended(self, asked: str) -> str | None:
        """Why the process is gone; None when it said why itself."""
        assert self._process is not None
        try:
            code = self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            return None
        return f"the NVIDIA driver's library crashed (exit code {code}, asked for {asked})"


def _timeout_s() -> float:
    setting = os.environ.get(TIMEOUT_VARIABLE)
    if not setting:
        return TIMEOUT_S
    with suppress(ValueError):
        if 0 < float(setting) <= 3600:
            return float(setting)
    raise OptionError(f"{TIMEOUT_VARIABLE}={setting!r} is not a valid timeout", fix="give seconds between 0 and 3600")


def _in_words(where: str, name: str) -> str:
    return f"the {in_words(name)} of GPU {where}" if where else f"the {in_words(name)}"


def _read_lines(pipe: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    """Every whole line of a pipe, then None."""
    rest = b""
    with pipe, suppress(OSError, ValueError):
        while chunk := pipe.read(65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put(line)
    lines.put(None)
