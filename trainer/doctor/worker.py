"""The other end of `workers.py`: `python -m autoft.trainer.doctor.worker MODULE:FUNCTION ARGS`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from autoft.trainer.doctor.finding import one_line
from autoft.trainer.runtime import environment


def main(function: str, args: str) -> None:
    """One object on stdout: {"answer": ...} or {"error": "one line"}. All that libraries print goes to stderr."""
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    environment.prepare()
    module, _, name = function.partition(":")
    message: dict[str, Any]
    try:
        message = {"answer": getattr(importlib.import_module(module), name)(*json.loads(args))}
    except Exception as error:  # noqa: BLE001 - what is asked here is whether it works, and why not
        message = {"error": one_line(error)}
    with answer_to:
        answer_to.write(json.dumps(message))


if __name__ == "__main__":
    main(*sys.argv[1:])
