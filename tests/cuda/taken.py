"""`main([SPEC])`: a run during which another process takes the rest of the card. Prints what came of it.

SPEC is JSON: "job" as Job.to_dict gives it, "out", and, where something is to be taken, "when" and "leave": bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoft.errors import AutoftError
from autoft.trainer.runtime import environment
from tests.cuda.card import HOLD


def main(words: list[str]) -> None:
    spec = json.loads(words[0])
    environment.prepare()
    from autoft.trainer.job import Job
    from autoft.trainer.run.session import run

    if "when" in spec:
        HOOKS[spec["when"]](lambda: take_all_but(spec["leave"]))
    out = Path(spec["out"])
    notes: list[str] = []
    try:
        result = run(
            Job.from_dict(spec["job"]),
            out,
            plan_toml="",
            listener=lambda event: notes.append(getattr(event, "text", "")),
        )
    except AutoftError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(result.to_dict() | {"memory_bytes": result.memory[0][1], "notes": notes}))


def take_all_but(leave: int, holders: list[Any] = []) -> None:  # noqa: B006 - it lasts as long as the process
    """Have another process hold all that is free of the card but `leave` bytes. Only the first time."""
    import torch

    if not holders:
        torch.cuda.empty_cache()
        holders.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(-leave)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        assert holders[0].stdout.readline() == "held\n"


def fill_but(num_bytes: int, blocks: list[Any] = []) -> None:  # noqa: B006 - it lasts as long as the process
    """Hold what PyTorch has reserved, but one block of so many bytes."""
    import torch

    kept = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    with suppress(torch.OutOfMemoryError):
        while True:
            blocks.append(torch.empty(2 << 20, dtype=torch.uint8, device="cuda"))
    del kept


def before_the_rehearsal(take: Any) -> None:
    from autoft.trainer.loop.engine import Engine

    _before(Engine, "rehearse", take)


def after_a_step(take: Any) -> None:
    from tests.faults.scene import at_step

    at_step(2, take)()


def before_the_last_evaluation(take: Any) -> None:
    from autoft.trainer.run import session

    real = session._evaluate

    def evaluate(session: Any, loaded: Any, when: str, *rest: Any) -> Any:
        if when == "after":
            take()
            fill_but(1 << 20)
        return real(session, loaded, when, *rest)

    session._evaluate = evaluate


def before_a_save(take: Any) -> None:
    from autoft.trainer.loop.engine import Engine

    real = Engine.save

    def save(self: Any) -> bool:
        if self.state.global_step == 2:
            take()
        return bool(real(self))

    Engine.save = save  # type: ignore[method-assign]


def _before(owner: Any, name: str, take: Any) -> None:
    real = getattr(owner, name)

    def first(*words: Any, **named: Any) -> Any:
        take()
        return real(*words, **named)

    setattr(owner, name, first)


HOOKS = {
    "rehearsal": before_the_rehearsal,
    "step": after_a_step,
    "evaluation": before_the_last_evaluation,
    "save": before_a_save,
}
