"""What a benchmark keeps of a child process, however that ends."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from types import ModuleType

import psutil
import pytest

from tests.validation.test_gpu_validate import BENCHMARKS


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("child")


def ask(child: ModuleType, body: str, timeout_s: float = 60.0) -> dict[str, object]:
    script = f"import json, os, signal, sys, time\nsys.path.insert(0, {str(BENCHMARKS)!r})\nimport child\n{body}"
    return dict(child.ask([sys.executable, "-c", script], {"number": 7}, timeout_s=timeout_s))


def test_all_lines_of_a_child_are_one_answer(child) -> None:
    body = "n = json.load(sys.stdin)['number']\nchild.tell({'a': n, 'b': 1})\nprint('a library')\nchild.tell({'b': 2})"
    assert ask(child, body) == {"a": 7, "b": 2}


def test_what_was_told_stays_when_the_process_aborts(child) -> None:
    body = "child.tell({'peak': 5})\nos.abort()"
    assert ask(child, body) == {"peak": 5, "ended": f"a signal ({signal.SIGABRT:d})"}


def test_a_child_that_tells_nothing_died_or_failed(child) -> None:
    assert ask(child, "os.kill(os.getpid(), signal.SIGSEGV)") == {"died_in": f"a signal ({signal.SIGSEGV:d})"}
    assert ask(child, "raise ValueError('no weights')") == {"error": "ValueError: no weights"}
    assert ask(child, "pass") == {"error": "it told nothing"}


def test_work_that_fails_ends_with_its_traceback_and_code_1(child) -> None:
    body = "child.work_and_leave(lambda: {}['x'])"
    assert ask(child, body) == {"error": "KeyError: 'x'"}
    assert ask(child, "child.work_and_leave(lambda: sys.exit('not here'))") == {"error": "not here"}


def test_work_that_is_done_ends_before_whatever_python_would_do_at_its_end(child) -> None:
    body = "import atexit\natexit.register(os.abort)\nchild.work_and_leave(lambda: child.tell({'done': 1}))"
    assert ask(child, body) == {"done": 1}


def test_a_child_that_takes_too_long_is_killed_with_what_it_has_started(child) -> None:
    body = (
        "import subprocess\n"
        "started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "child.tell({'pid': started.pid})\ntime.sleep(600)"
    )
    told = ask(child, body, timeout_s=8.0)
    assert told["ended"] == "not done after 8 s"
    deadline = time.monotonic() + 30
    while _runs(told["pid"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(told["pid"])


def _runs(pid: object) -> bool:
    assert isinstance(pid, int)
    assert pid != os.getpid()
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
