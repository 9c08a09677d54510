"""Signals: the first Ctrl-C or SIGTERM asks a run to save and stop, the second ends it at once. SIGHUP ends nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from autoft.errors import Interrupted, Resumable

ASK = ("SIGINT", "SIGTERM", "SIGBREAK")
RESUMABLE, NOTHING_TO_RESUME = Resumable.exit_code, Interrupted.exit_code


class StopRequested(BaseException):
    """Raised where a run can stop without loss. Not an Exception: nothing on the way may take it for a failure."""


class StopRequest:
    """signal: the name of the one that asked the run to stop; None until then. resumable: a checkpoint is there."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.resumable = False

    def check(self) -> None:
        """Raises: StopRequested when the run was asked to stop."""
        if self.signal is not None:
            raise StopRequested(self.signal)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """A StopRequest that signals set inside the block; the handlers of before come back after it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread hears signals
        return

    def ask(number: int, _: FrameType | None) -> None:
        if request.signal is not None:
            _end_at_once(RESUMABLE if request.resumable else NOTHING_TO_RESUME)
        request.signal = signal.Signals(number).name
        _say("Stopping after this step; once more stops at once")

    wanted: dict[str, Any] = dict.fromkeys(ASK, ask) | {"SIGHUP": signal.SIG_IGN}
    before = {
        number: signal.signal(number, handler)
        for name, handler in wanted.items()
        if (number := getattr(signal, name, None)) is not None
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_hangup() -> None:
    """A terminal that closes ends nothing from here on."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def let_go_of_lost_outputs() -> None:
    """Have what goes to a terminal that was closed, or a pipe that nobody reads any more, go nowhere."""
    if not hasattr(select, "poll"):
        return
    lost = select.poll()
    for stream in (1, 2):
        lost.register(stream, 0)
    for stream, _ in lost.poll(0):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)


def _end_at_once(exit_code: int) -> None:
    """No more waiting for anything. Whatever was being written is aside, and never taken for whole."""
    _say("\x1b[?25hStopped")  # a live display hides the cursor
    os._exit(exit_code)


def _say(text: str) -> None:
    """On a terminal, past all buffers: a handler runs in the midst of anything."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), f"\r\n{text}\r\n".encode())
