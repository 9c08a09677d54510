"""Questions that may hang or crash are asked in a process of their own, which has so long to answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import psutil

from autoft.trainer.runtime import environment


class Unanswered(Exception):  # noqa: N818 - the absence of an answer
    """The question was not answered; the message says why, in one line."""


class Workers:
    """Asks each question in a new Python, from any thread. `close` ends those that still run."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, function: str, *args: Any, timeout_s: float) -> Any:
        """What `function` ("package.module:name") returns for `args`, all of them as JSON.

        Raises: Unanswered when it raises, crashes or takes longer than `timeout_s`.
        """
        words = [sys.executable, "-P", "-m", "autoft.trainer.doctor.worker", function, json.dumps(args)]
        env = environment.of_child()
        pipe = subprocess.PIPE
        with self._lock:
            if self._closed:
                raise Unanswered("the doctor was stopped")
            process = subprocess.Popen(
                words, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
            )
            self._running.add(process)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            with suppress(subprocess.TimeoutExpired):  # one that hangs inside a driver may not even die
                process.communicate(timeout=2)
            raise Unanswered(f"no answer within {timeout_s:.0f} s") from None
        finally:
            with self._lock:
                self._running.discard(process)
        return _answer(process.returncode, out, err)

    def close(self) -> None:
        """End all that still run; what they were asked stays unanswered."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a worker and what it started. Whoever asked it reads its end."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()


def _answer(code: int, out: str, err: str) -> Any:
    try:
        message = json.loads(out)
        if "error" not in message:
            return message["answer"]
        reason = message["error"]
    except (ValueError, TypeError, KeyError):
        last = " ".join((err.strip().splitlines() or ["it said nothing"])[-1].split())[:200]
        reason = f"{_end(code)}: {last}"
    raise Unanswered(reason)


def _end(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"crashed ({signal.Signals(-code).name})"
    return f"ended with code {code}"
