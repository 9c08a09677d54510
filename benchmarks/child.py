"""A benchmark's child process: it tells what it measured in lines of JSON, and ends without asking any library.

A process that ends right after a backward may be aborted (exit 134, "terminate called without an active exception"):
PyTorch's device threads ask for Python's lock while Python ends. And a profiler may crash. So a child writes each
result at once, and a parent keeps what was written, however the child ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import psutil

Json = dict[str, Any]


def tell(record: Json) -> None:
    """A line for the parent."""
    print(json.dumps(record), flush=True)


def work_and_leave(work: Callable[[], None]) -> NoReturn:
    """Do it and end this process at once: code 0, or 1 with the traceback on stderr."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - whatever it is, it must not end in the interpreter's own way
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ask(words: Sequence[str], request: Json, *, timeout_s: float, environ: Mapping[str, str] | None = None) -> Json:
    """The lines that the child told, in one: later ones fill in what earlier ones lack.

    Where it ended badly, `ended` says how beside them; where it told nothing, "died_in" (a signal) or "error" does.
    """
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as child:
        try:
            out, errors = child.communicate(json.dumps(request), timeout=timeout_s)
            late = False
        except subprocess.TimeoutExpired:
            end_tree(child.pid)
            out, errors = child.communicate()
            late = True
    told: Json = {}
    for line in records(out.splitlines()):
        told |= line
    if not late and child.returncode == 0:
        return told or {"error": "it told nothing"}
    ended = f"not done after {timeout_s:.0f} s" if late else _how(child.returncode, errors)
    if told:
        return {**told, "ended": ended}
    return {"died_in": ended} if child.returncode < 0 and not late else {"error": ended}


def records(lines: Sequence[str]) -> list[Json]:
    """Those of the lines that are JSON objects; libraries may print others between them."""
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def end_tree(pid: int) -> None:
    """Kill a process and all that it has started."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.Error:
        return
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue


def _how(code: int, errors: str) -> str:
    return f"a signal ({-code})" if code < 0 else (errors.strip().splitlines() or ["no word of why"])[-1][:300]
