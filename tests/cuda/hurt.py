"""`main([ACT, STEP, PATH, ...])`: autoft with the words that follow, and ACT when a training step is done."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def main(words: list[str]) -> None:
    """ACT: "kill" the process, or "lose" the card by making the file PATH."""
    from autoft.cli.main import main as autoft
    from tests.faults.scene import at_step

    act, step, path, *rest = words
    acts = {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "lose": Path(path).touch}
    at_step(int(step), acts[act])()
    autoft(rest)
