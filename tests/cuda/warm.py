"""`python -m tests.cuda.warm`: a process with all of autoft imported, which forks a child for each command line.

A command takes a third of the time so: most of it are imports. CUDA is not started here, so that each child starts it
for itself, on the card that its own environment describes; to that end bitsandbytes, which asks for the card while it
is imported, is given an answer. What imports do to a card is for tests that start a process for each command.

On stdin a request a line: {"call", "words", "env", "cwd", "out", "err"}. On stdout its exit code, below 0 for a signal.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_all()
    print("warm", file=answers, flush=True)
    for line in sys.stdin:
        print(serve(json.loads(line)), file=answers, flush=True)


def import_all() -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401

    with card_unasked(torch):
        import bitsandbytes  # noqa: F401

        import autoft.cli.main
        import autoft.planner.plan.make
        import autoft.planner.plan.recheck
        import autoft.trainer.evaluation.evaluate
        import autoft.trainer.loop.engine
        import autoft.trainer.run.session  # noqa: F401
    assert not torch.cuda.is_initialized()
    gc.collect()
    gc.freeze()


@contextmanager
def card_unasked(torch: Any) -> Iterator[None]:
    """One card of compute capability 8.0 is there, whoever asks in the block."""
    answers = {"is_available": True, "device_count": 1, "get_device_capability": (8, 0)}
    real = {name: getattr(torch.cuda, name) for name in answers}
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(torch.cuda, name, function)


def serve(request: dict[str, Any]) -> int:
    """Exit code of a child that runs the request."""
    child = os.fork()
    if child == 0:
        code = 70  # of a fault in what follows
        try:
            code = run(request)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            ctypes.CDLL(None).si_write_calls()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(request: dict[str, Any]) -> int:
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # what children of this child are to find
    sys.path[:0] = [folder for folder in request["env"]["PYTHONPATH"].split(":") if folder not in sys.path]
    sys.argv = ["autoft", *request["words"]]
    module, _, function = request["call"].partition(":")
    try:
        getattr(importlib.import_module(module), function)(request["words"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException:  # noqa: BLE001 - as at the end of any process
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
