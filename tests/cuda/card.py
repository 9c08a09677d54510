"""Commands on a described card: what they print, and what the stand-in's driver saw of them."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# Where tests/standin/build.sh has put its libraries
STANDIN = Path(os.environ.get("STANDIN_HOME") or Path(sys.prefix) / "standin")
# Put before the stand-in's own sitecustomize.py where lines are counted
COUNTED = Path(__file__).parent / "counted"
# Checks of what a Triton kernel computes, such as the fused head's loss: none runs. They run, and may fail.
TRITON = "autoft.trainer.doctor.compute:triton_kernel"
FUSED_HEAD = "autoft.trainer.checks.gates:_loss_is_the_base_s"
AUTOFT = (sys.executable, "-P", "-c", "import sys; from autoft.cli.main import main; sys.exit(main())")
LONGEST_S = 3600.0  # after which a command counts as hung
FLOATS = 2**25  # elements: whatever a tiny model computes with truth is computed, 16 rows of 512 tokens too
# What takes so many bytes of the card, or all but so many where the number is negative, until it reads a line
HOLD = """
import ctypes, sys
card = ctypes.CDLL("libcudart.so.13")
card.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
size, free, total = int(sys.argv[1]), ctypes.c_size_t(), ctypes.c_size_t()
assert card.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
assert card.cudaMalloc(ctypes.byref(ctypes.c_void_p()), size if size > 0 else free.value + size) == 0
print("held", flush=True)
sys.stdin.readline()
"""


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
        ignore: tuple[str, ...] = (TRITON,),
    ) -> None:
        """visible: CUDA_VISIBLE_DEVICES. shared: processes see each other's memory. The rest as in standin.py.

        ignore: with truth, checks whose failure is printed and passed over.
        """
        self.folder = folder
        self.log = folder / "driver.log"
        self.calls = folder / "calls"
        self.shared = folder / "shared" if shared else None
        described = _launcher().environment(
            names, gpus=gpus, memory=memory, number=number, truth=truth, fault=fault, shared=self.shared, log=self.log,
            calls=self.calls, base={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **described, "STANDIN_IGNORE": ",".join(ignore)}
        self.environment["STANDIN_TRUTH_FLOATS"] = str(FLOATS)
        if "AUTOFT_LINES" in os.environ:
            self.environment["PYTHONPATH"] = f"{COUNTED}:{self.environment['PYTHONPATH']}"
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = visible

    def __call__(self, *words: object, env: Mapping[str, str] | None = None) -> Done:
        """Run `autoft WORDS`."""
        return self.run(*AUTOFT, *words, env=env)

    def warm(self, *words: object, call: str = "autoft.cli.main:main", env: Mapping[str, str] | None = None) -> Done:
        """Run `autoft WORDS` in a fork of a process that has imported it: quicker, but no import asks for the card.

        call: "module:function" of what gets the words in place of autoft.
        """
        before = len(self.events())
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        request = {
            "call": call, "words": [str(word) for word in words], "env": {**self.environment, **(env or {})},
            "cwd": str(self.folder), "out": str(out), "err": str(err),
        }  # fmt: skip
        code = _warm_process(self.environment).ask(request)
        text = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        return Done(code, *text, tuple(self.events()[before:]))

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

    @contextmanager
    def held(self, num_bytes: int) -> Iterator[int]:
        """Another process holds so much of the card in the block; gives its id. The card is `shared`."""
        assert self.shared is not None
        holder = self.start(sys.executable, "-c", HOLD, num_bytes)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder.pid
        finally:
            holder.communicate("\n")

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


class WarmProcess:
    """The process that warm.py is. environment: of a card, for the libraries and what is computed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.cuda.warm"],
            env={**environment, "STANDIN_CALLS": os.devnull, "STANDIN_LOG": os.devnull},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "warm"

    def ask(self, request: Mapping[str, Any]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], LONGEST_S)
        if not ready:
            self.process.kill()
            raise TimeoutError(f"no end within {LONGEST_S:.0f} s")
        return self.process.stdout.readline().strip()


_warm: dict[str, WarmProcess] = {}


def _warm_process(environment: Mapping[str, str]) -> WarmProcess:
    """One for each PYTHONPATH and what checks are ignored: both are read when modules are imported."""
    kind = f"{environment['PYTHONPATH']} {environment['STANDIN_IGNORE']}"
    if kind not in _warm:
        _warm[kind] = WarmProcess(environment)
    return _warm[kind]


def close_warm() -> None:
    """End those processes."""
    while _warm:
        _warm.popitem()[1].close()


def _launcher() -> Any:
    spec = importlib.util.spec_from_file_location("standin", STANDIN / "standin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
