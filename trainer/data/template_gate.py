"""A chat template is a program of somebody else's: whether it is whole, ends, and takes no memory without end."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

from autoft.errors import ModelError
from autoft.trainer.data.thinking import environment_of_templates

LONGEST_S = 20.0  # to write two turns; the slowest of TRL's takes some milliseconds
MOST_BYTES = 2**30  # of memory for that
NO_MEMORY = 2
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FIX = "put the model's own chat_template.jinja in its place"


def check_template(tokenizer: Any, model: str) -> None:
    """Raises: ModelError for a template that is broken, or does not come to an end."""
    try:
        source = str(tokenizer.get_chat_template())
    except (ValueError, TypeError):  # none, or several of which none is the default
        return
    _check_syntax(source, model)
    ended = _ends(tokenizer, source)
    if ended is not None:
        raise ModelError(f"{model}: its chat template {ended}", fix=FIX)


def _check_syntax(source: str, model: str) -> None:
    from jinja2 import TemplateSyntaxError

    environment = environment_of_templates()
    environment.optimized = False  # no constants are computed here, however large
    try:
        environment.compile(source, raw=True)
    except TemplateSyntaxError as error:
        reason = str(error.message).replace("unexpected", "found")
        raise ModelError(f"{model}: its chat template is broken: line {error.lineno}: {reason}", fix=FIX) from error
    except RecursionError as error:
        raise ModelError(f"{model}: its chat template is nested too deeply", fix=FIX) from error


@lru_cache(8)
def _ends(tokenizer: Any, _source: str) -> str | None:
    """Why it does not, in a process of its own, which can be ended; None where it does, or outside Linux.

    There alone a fork is safe beside whatever libraries are loaded.
    """
    if sys.platform != "linux":
        return None
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            code = _write(tokenizer)
        os._exit(code)
    until = time.monotonic() + LONGEST_S
    wait_s = 0.001
    try:
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                return _told(os.waitstatus_to_exitcode(status))
            time.sleep(wait_s)
            wait_s = min(0.05, 2 * wait_s)
        return f"does not come to an end within {LONGEST_S:.0f} s"
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _told(code: int) -> str | None:
    """What the exit code of `_write` means, or the signal that has ended it."""
    if code == NO_MEMORY:
        return f"takes more than {MOST_BYTES // 2**20:,} MiB to write two turns"
    return f"ends the process that writes it (signal {-code})" if code < 0 else None


def _write(tokenizer: Any) -> int:
    """Exit code: 0 written; 1 refused, of which whoever writes rows tells; or NO_MEMORY."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, taken + MOST_BYTES))
    try:
        for turns, asks in ((TURNS, False), (TURNS[:1], True)):
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
    except MemoryError:
        return NO_MEMORY
    except Exception:  # noqa: BLE001 - jinja raises what the template's author wrote
        return 1
    return 0
