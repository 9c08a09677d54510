"""Where faults are caused: a process that has all of autoft imported and forks a child for each run that is hurt.

A child is what `autoft` is otherwise: it calls the command line's own `main`, takes real signals and dies real deaths.
It saves the imports only, and the plan's check against this machine, which no fault is about. In front of libc stands
shim.c, which counts every change of a file and does harm at one of them. Nothing here uses threads before a fork.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.home import sha256

SHIM = Path(__file__).with_name("shim.c")
KILL, KILL_HALF, FAIL, FAIL_HALF, CLOCK = range(1, 6)  # the enum of shim.c
SETTINGS = {
    "base_dtype": "float32", "micro_batch": 4, "seq_len": 64, "rank": 4, "alpha": 8, "dropout": 0.1, "epochs": 10,
    "accumulation": 2, "learning_rate": 0.01, "max_new_tokens": 0, "eval_rows": 4, "save_steps": 1,
}  # fmt: skip
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Harm:
    """At change `at` of the files, from 1: what to do. code: an errno, or for CLOCK seconds. once: FAIL only then."""

    what: int
    at: int
    code: int = 0
    once: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """code: exit code, negative for a signal. said: standard error and output."""

    code: int
    said: str


def compile_shim(folder: Path) -> Path | None:
    """shim.so in `folder`; None where there is no compiler, or no Linux."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"], check=True)
    return library


class Scene:
    """A folder of its own with model, data and a plan. One a process, made before anything else uses torch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.model, self.data = self.folder / "tiny", self.folder / "data.jsonl"
        self.work = self.folder / "work"  # what is watched
        self.home = self.work / "home"
        self.log = self.folder / "changes"
        self.home.mkdir(parents=True)
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "AUTOFT_HOME": str(self.home), "COLUMNS": "200"}
        preloaded = os.environ.get("LD_PRELOAD")
        self.shim = ctypes.CDLL(preloaded) if preloaded else None
        _import_all()
        assert self.child(self._furnish).code == 0
        self.plans: dict[str, Path] = {}

    def _furnish(self) -> None:
        from tests.conftest import save_tiny_model, write_jsonl

        save_tiny_model(self.model)
        write_jsonl(self.data, [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(40)])

    def plan(self, **settings: Any) -> Path:
        """A plan.toml with SETTINGS and these; made once."""
        name = "-".join(f"{key}={value}" for key, value in settings.items()) or "plan"
        if name not in self.plans:
            path = self.folder / f"{name}.toml"
            words = [word for key, value in (SETTINGS | settings).items() for word in ("--set", f"{key}={value}")]
            done = self.child(lambda: autoft(
                "plan", self.model, "--data", self.data, "--gpu", "cpu", "--method", "lora", *words, "-o", path
            ))  # fmt: skip
            assert done.code == 0, done.said
            self.plans[name] = path
        return self.plans[name]

    def child(self, act: Callable[[], Any], harm: Harm | None = None, *, log: Path | None = None,
              kill_after_s: float | None = None) -> Done:  # fmt: skip
        """What became of `act` in a child of its own."""
        said = self.folder / "said"
        began = os.fork()
        if began == 0:
            _redirect(said)
            os._exit(self.act(act, harm, log))
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(began, signal.SIGKILL)
        _, status = os.waitpid(began, 0)
        return Done(os.waitstatus_to_exitcode(status), said.read_text(encoding="utf-8", errors="replace"))

    def act(self, act: Callable[[], Any], harm: Harm | None = None, log: Path | None = None) -> int:
        """Do it in this process, which is a child's; the exit code."""
        if self.shim is not None and (harm or log):
            harm = harm or Harm(0, 0)
            self.shim.fault_arm(
                str(self.work).encode(), str(log or "").encode(), harm.at, harm.what, ctypes.c_longlong(harm.code),
                int(harm.once),
            )  # fmt: skip
        # a parent's may remember that they were files
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115
        code = 0
        try:
            act()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:  # noqa: BLE001 - a child must not go on as if it were its parent
            with suppress(OSError):
                traceback.print_exc()
            code = 99
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        return code

    def run(self, out: Path, plan: Path, *words: str, harm: Harm | None = None, before: Callable[[], Any] = bool,
            log: Path | None = None, kill_after_s: float | None = None) -> Done:  # fmt: skip
        """`autoft run PLAN -o OUT`; before: done in the child first."""
        act = lambda: (before(), autoft("run", plan, "-o", out, *words))  # noqa: E731
        return self.child(act, harm, log=log, kill_after_s=kill_after_s)

    def resume(self, out: Path, *words: str, harm: Harm | None = None, log: Path | None = None) -> Done:
        """`autoft resume OUT`."""
        return self.child(lambda: autoft("resume", out, *words), harm, log=log)

    def changes(self, plan: Path, *words: str, out: Path) -> list[str]:
        """Every change of a file that a quiet run makes, in order: its name and path."""
        self.log.unlink(missing_ok=True)
        done = self.run(out, plan, *words, log=self.log)
        assert done.code == 0, done.said
        return [line.split(" ", 1)[1] for line in self.log.read_text(encoding="utf-8").splitlines()]


def autoft(*words: object) -> None:
    """The command line, in this process; it exits."""
    from autoft.cli.main import main

    main([str(word) for word in words])


def _import_all() -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    import rich.progress  # noqa: F401

    from autoft.planner.plan import recheck
    from autoft.planner.plan.record import Plan
    from autoft.schema import _adapter

    _adapter(Plan)

    def unchecked(planned: Any, *_: Any, **__: Any) -> Any:
        return types.SimpleNamespace(plan=planned, prepared=None, notes=())

    recheck.recheck = unchecked
    # or every collection of a child copies all that it has of its parent
    gc.collect()
    gc.freeze()


def _redirect(path: Path) -> None:
    to = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(to, stream)
    os.close(to)


def at_step(number: int, act: Callable[[], Any]) -> Callable[[], None]:
    """To be done in a child before it runs: `act` comes when that optimizer step is done."""

    def prepare() -> None:
        from autoft.trainer.loop.callbacks import Watch

        real = Watch.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
            real(self, args, state, control, **rest)
            if state.global_step == number:
                act()

        Watch.on_step_end = on_step_end  # type: ignore[method-assign]

    return prepare


def send(*numbers: signal.Signals) -> Callable[[], None]:
    """Signals to this process, one after another."""
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


def learnt(out: Path) -> str:
    """Digest of the adapter."""
    return sha256(out / ADAPTER)


def flaws(out: Path, expected: Path) -> list[str]:
    """What is not as it should be of a finished folder; expected: one that nothing has disturbed."""
    if not (out / "result.json").is_file():
        return ["there is no result.json"]
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    names, wanted = ({path.name for path in folder.iterdir()} for folder in (out, expected))
    found = [f"{name} is missing" for name in sorted(wanted - names)]
    found += [f"{name} is left over" for name in sorted(names - wanted)]
    found += [
        f"{name} is not what result.json says"
        for name, digest in result["artifacts"].items()
        if name in names and sha256(out / name) != digest
    ]
    found += [f"result.json names {name}" for name in sorted(set(result["artifacts"]) - names)]
    found += [] if learnt(out) == learnt(expected) else ["the weights are others"]
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except ValueError:
            found.append(f"events.jsonl has half a line: {line[:60]}")
    for name in (f"{out.name}.unfinished", f".{out.name}.replaced"):
        found += [f"{name} lies beside it"] if out.with_name(name).exists() else []
    return found


@contextmanager
def small_disk(folder: Path, size: str, *, read_only: bool = False) -> Iterator[Path | None]:
    """A real filesystem of its own in `folder`; None where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" + (",ro" if read_only else "")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
