"""Commands on a described card: what they print, and what the stand-in's driver saw of them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# Where tests/standin/build.sh has put its libraries
STANDIN = Path(os.environ.get("STANDIN_HOME") or Path(sys.prefix) / "standin")
# No kernel runs, so the check that compares a Triton kernel's values with its reference cannot pass
UNANSWERABLE = "autoft.trainer.doctor.compute:triton_kernel"
AUTOFT = (sys.executable, "-P", "-c", "import sys; from autoft.cli.main import main; sys.exit(main())")
LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Event:
    """What the driver saw of a process.

    what: "start" (CUDA was initialized), "context" (a context was made on `device`), "full" (an allocation was
    refused), "forked" (CUDA was called in a child of a process that had initialized it). by: the function called.
    """

    pid: int
    what: str
    device: int
    by: str
    command: str


@dataclass(frozen=True, slots=True)
class Done:
    """Exit code (negative for a signal), standard output and error, and events of all its processes."""

    code: int
    out: str
    err: str
    events: tuple[Event, ...]

    @property
    def json(self) -> Any:
        """What --json has printed."""
        return json.loads(self.out)

    @property
    def contexts(self) -> list[Event]:
        """Contexts that it has made on a card."""
        return [event for event in self.events if event.what == "context"]

    @property
    def refused(self) -> int:
        """Allocations for which the card had no memory left."""
        return sum(event.what == "full" for event in self.events)


class Card:
    """Cards of one description in a machine of their own. `card("plan", ...)` runs autoft there."""

    def __init__(
        self,
        names: str,
        folder: Path,
        *,
        gpus: int = 1,
        memory: float | None = None,
        number: float | None = None,
        truth: bool = False,
        fault: str | None = None,
        shared: bool = False,
        visible: str | None = None,
    ) -> None:
        """visible: CUDA_VISIBLE_DEVICES. shared: processes see each other's memory. The rest as in standin.py."""
        self.folder = folder
        self.log = folder / "driver.log"
        self.calls = folder / "calls"
        self.shared = folder / "shared" if shared else None
        described = _launcher().environment(
            names, gpus=gpus, memory=memory, number=number, truth=truth, fault=fault, shared=self.shared, log=self.log,
            calls=self.calls, base={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.environment = {**os.environ, **described, "STANDIN_IGNORE": UNANSWERABLE}
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = visible

    def __call__(self, *words: object, env: Mapping[str, str] | None = None) -> Done:
        """Run `autoft WORDS`."""
        return self.run(*AUTOFT, *words, env=env)

    def python(self, *words: object, env: Mapping[str, str] | None = None) -> Done:
        """Run `python WORDS`."""
        return self.run(sys.executable, *words, env=env)

    def run(self, *command: object, env: Mapping[str, str] | None = None) -> Done:
        """Run any command to its end."""
        before = len(self.events())
        ended = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        return Done(ended.returncode, ended.stdout, ended.stderr, tuple(self.events()[before:]))

    def start(self, *command: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start any command, its standard streams as pipes."""
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def events(self) -> list[Event]:
        """What the driver has seen so far."""
        if not self.log.exists():
            return []
        lines = [line.split("\t", 4) for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        return [Event(int(pid), what, int(device), by, command) for pid, what, device, by, command in lines]

    def kernels(self) -> set[str]:
        """Names of the kernels that processes which have ended by themselves have launched."""
        if not self.calls.exists():
            return set()
        lines = [line.split(" ", 3) for line in self.calls.read_text(encoding="utf-8", errors="replace").splitlines()]
        return {name for _, kind, _, name in lines if kind == "kernel"}


def _launcher() -> Any:
    spec = importlib.util.spec_from_file_location("standin", STANDIN / "standin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
