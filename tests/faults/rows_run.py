"""Rows of the table: signals, the end of memory, numbers that are none, damage, and what changes beneath a run."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from autoft.trainer.storage.ownership import CHECKPOINTS
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.scene import Done, Scene, at_step, autoft, flaws, learnt, send
from tests.faults.table import Case, Row, clear, row, settle, single

STEPS = 6
NEWEST = "step-00000003"


class Runs:
    """Quiet runs of six steps, and folders of runs that were stopped after the third."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.plan = scene.plan(max_steps=STEPS)
        self.quiet, self.out = scene.work / "quiet6", scene.work / "out"
        if not self.quiet.exists():
            done = scene.run(self.quiet, self.plan)
            assert done.code == 0, done.said

    def case(
        self, before: Callable[[], Any], allowed: tuple[int, ...], *, said: str = "", on_terminal: bool = False
    ) -> Case:
        """A run in which `before` has set something up; said: words that it has to say."""
        clear(self.scene)
        if on_terminal:
            first = _on_terminal(self.scene, lambda: (before(), autoft("run", self.plan, "-o", self.out)))
        else:
            first = self.scene.run(self.out, self.plan, before=before)
        case = settle(self.scene, self.out, self.plan, self.quiet, first, allowed)
        missing = [] if said in first.said else [f"does not say {said!r}: {first.said[-300:]}"]
        return replace(case, wrong=(*case.wrong, *missing))

    def stopped(self) -> Path:
        """The unfinished folder of a run that was stopped after step 3."""
        clear(self.scene)
        kept = self.scene.folder / "stopped"
        if not kept.exists():
            done = self.scene.run(self.out, self.plan, before=at_step(3, send(signal.SIGTERM)))
            assert done.code == 4, done.said
            shutil.copytree(unfinished(self.out), kept)
            clear(self.scene)
        return shutil.copytree(kept, unfinished(self.out))


def signals(runs: Runs) -> Iterator[Row]:
    """Each to a process without a terminal and to one that has one."""
    rows = [
        ("SIGINT (Ctrl-C)", (signal.SIGINT,), 4, "autoft resume"),
        ("SIGTERM", (signal.SIGTERM,), 4, "autoft resume"),
        ("SIGINT twice", (signal.SIGINT, signal.SIGINT), 4, ""),
        ("SIGHUP", (signal.SIGHUP,), 0, ""),
    ]
    for fault, numbers, code, said in rows:
        began, cases = time.monotonic(), []
        for on_terminal in (False, True):
            case = runs.case(at_step(3, send(*numbers)), (code,), said=said, on_terminal=on_terminal)
            wrong = [] if case.code == code else [f"exit {case.code} instead of {code}"]
            cases.append(replace(case, wrong=(*case.wrong, *wrong)))
        yield row(fault, "after step 3, without and on a terminal", cases, began)
    began = time.monotonic()
    case = runs.case(at_step(3, _halt), (0,))
    yield row("halted for two seconds, as when a laptop sleeps", "after step 3", [case], began)


def _halt() -> None:
    """This process stops, until another has it go on."""
    os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sleep 2; kill -CONT {os.getpid()}")
    os.kill(os.getpid(), signal.SIGSTOP)


def terminal(runs: Runs) -> Iterator[Row]:
    """What the run writes to is gone: it goes on."""
    began = time.monotonic()
    clear(runs.scene)
    first = _on_terminal(runs.scene, lambda: autoft("run", runs.plan, "-o", runs.out), close_at_step=3)
    case = settle(runs.scene, runs.out, runs.plan, runs.quiet, first, (0,))
    yield row("the terminal is closed", "after step 3", [case], began)
    clear(runs.scene)
    began = time.monotonic()
    cut = at_step(3, _close_reader)
    yield row("who reads its output ends", "after step 3", [runs.case(cut, (0,))], began)


def _close_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for stream in (1, 2):
        os.dup2(writer, stream)


def _on_terminal(scene: Scene, act: Callable[[], Any], *, close_at_step: int | None = None) -> Done:
    """As `Scene.child`, with a terminal of its own; close_at_step: which is closed then, as by its window."""
    reached, reach = os.pipe()
    going, go = os.pipe()
    child, ours = pty.fork()
    if child == 0:
        os.close(reached)
        os.close(go)
        if close_at_step is not None:
            at_step(close_at_step, lambda: (os.write(reach, b"x"), os.close(reach), os.read(going, 1)))()
        try:
            os._exit(scene.act(act))
        finally:
            os._exit(99)
    os.close(reach)
    os.close(going)
    said = b""
    os.set_blocking(ours, False)
    os.set_blocking(reached, False)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ours >= 0:
            said += _read(ours)
        if ended:
            break
        if close_at_step is not None and ours >= 0 and _read(reached):
            os.close(ours)
            ours = -1
            os.close(go)
            go = -1
        time.sleep(0.02)
    for fd in (ours, reached, go):
        if fd >= 0:
            os.close(fd)
    return Done(os.waitstatus_to_exitcode(status), said.decode(errors="replace"))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def memory(runs: Runs) -> Iterator[Row]:
    """A real request that no machine can meet, where the step would have made its own. Without dropout: smaller
    micro-batches draw other numbers."""
    scene = runs.scene
    plan = scene.plan(max_steps=STEPS, dropout=0.0)
    quiet = scene.work / "quiet6-dry"
    assert scene.run(quiet, plan).code == 0
    began, cases = time.monotonic(), []
    for step in (1, 4, STEPS):
        clear(scene)
        first = scene.run(runs.out, plan, before=lambda step=step: _memory_ends(step))
        wrong = [] if first.code == 0 else [first.said[-300:]]
        far = scene.child(lambda: print(_distance(runs.out, quiet)))
        wrong += [] if far.code == 0 and float(far.said) < 1e-5 else [f"weights differ: {far.said[-200:]}"]
        known = json.loads((runs.out / "result.json").read_text(encoding="utf-8"))["events"]
        wrong += [] if [event["micro_batch"] for event in known] == [2] else [f"events: {known}"]
        cases.append(Case(code=first.code, then="with half the micro-batch", wrong=tuple(wrong)))
    yield row("memory ends in a step", f"steps 1, 4 and {STEPS}", cases, began)
    for when, name in (("in the evaluation after training", "evaluation"), ("in a checkpoint's save", "save")):
        began = time.monotonic()
        ends = _memory_ends_evaluating if name == "evaluation" else _memory_ends_saving
        yield row("memory ends", when, [runs.case(ends, (4,))], began)


def _no_room() -> None:
    import torch

    torch.empty(2**46)


def _memory_ends(step: int) -> None:
    """From an optimizer step on, for more than two rows, once the forward is done."""
    _change_loss(step, lambda loss, rows: _no_room() if rows > 2 else loss)


def _change_loss(step: int, change: Callable[[Any, int], Any]) -> None:
    """Have the loss be `change(loss, rows of the batch)` in training from that optimizer step on."""
    from autoft.trainer.loop import engine

    real = engine.Engine.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *rest: Any, **words: Any) -> Any:
        loss = real(self, model, inputs, *rest, **words)
        trains = words.get("num_items_in_batch") is not None
        return change(loss, inputs["input_ids"].size(0)) if trains and self.state.global_step + 1 >= step else loss

    engine.Engine.compute_loss = compute_loss  # type: ignore[method-assign]


def _memory_ends_evaluating() -> None:
    from autoft.trainer.run import session

    real = session._evaluate

    def evaluate(session: Any, loaded: Any, when: str, *rest: Any) -> Any:
        if when == "after":
            _no_room()
        return real(session, loaded, when, *rest)

    session._evaluate = evaluate


def _memory_ends_saving() -> None:
    from autoft.trainer.storage import checkpoint

    real = checkpoint._packed
    calls = [0]

    def counted(value: Any, tensors: dict[str, Any], name: str) -> Any:
        calls[0] += name == "optimizer"
        if calls[0] == 4 and name == "optimizer":
            _no_room()
        return real(value, tensors, name)

    checkpoint._packed = counted


def _distance(out: Path, other: Path) -> float:
    from safetensors.torch import load_file

    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (out, other))
    return max(float((one[name] - two[name]).abs().max()) for name in two)


def processes(runs: Runs) -> Iterator[Row]:
    """Two that train together."""
    scene = runs.scene
    plan = scene.plan(max_steps=STEPS, num_gpus=2, accumulation=1)
    quiet = scene.work / "quiet6-two"
    assert scene.run(quiet, plan).code == 0
    for fault, act in (
        ("the second of two processes is killed", _kill_second),
        ("the first of two processes is killed", send(signal.SIGKILL)),
    ):
        clear(scene)
        began = time.monotonic()
        first = scene.run(runs.out, plan, before=at_step(3, act))
        yield row(fault, "after step 3", [settle(scene, runs.out, plan, quiet, first, (4, -9))], began)


def _kill_second() -> None:
    (second,) = psutil.Process().children()
    second.kill()


def not_finite(runs: Runs) -> Iterator[Row]:
    """Stopped before the update: exit 1, the last checkpoint is finite and stays."""
    for when, before in (
        ("loss of step 3", lambda: _poison(3, gradient=False)),
        ("gradient of step 3", lambda: _poison(3, gradient=True)),
    ):
        yield single("a number that is none", when, lambda before=before: _stops(runs, before))
    yield single("a number that is none", "in the base's weights", lambda: _bad_weights(runs))


def _poison(step: int, *, gradient: bool) -> None:
    def change(loss: Any, _: int) -> Any:
        if not gradient:
            return loss * float("nan")
        loss.register_hook(lambda value: value * float("inf"))
        return loss

    _change_loss(step, change)


def _stops(runs: Runs, before: Callable[[], None]) -> tuple[str, str, bool | None, list[str]]:
    clear(runs.scene)
    done = runs.scene.run(runs.out, runs.plan, before=before)
    wrong = [] if done.code == 1 and "stopped before the update" in done.said else [done.said[-300:]]
    staged = unfinished(runs.out)
    wrong += [] if (staged / "not-finite.json").is_file() else ["no not-finite.json"]
    # with the cause gone it goes on as if nothing had been
    again = runs.scene.resume(runs.out)
    wrong += [] if again.code == 0 else [again.said[-300:]]
    same = again.code == 0 and learnt(runs.out) == learnt(runs.quiet)
    return "stopped before the update, exit 1; rows named and saved; resumed", "nothing", same, wrong


def _bad_weights(runs: Runs) -> tuple[str, str, bool | None, list[str]]:
    scene = runs.scene
    clear(scene)
    saved = scene.folder / "saved.safetensors"
    file = scene.model / "model.safetensors"
    shutil.copy(file, saved)
    assert scene.child(lambda: _spoil(file)).code == 0
    done = scene.run(runs.out, runs.plan)
    shutil.move(saved, file)
    wrong = [] if done.code in (1, 2) and "loss of the base alone is nan" in done.said else [done.said[-300:]]
    return f"refused before the first step, exit {done.code}", "nothing", None, wrong


def _spoil(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def damage(runs: Runs) -> Iterator[Row]:
    """Each file of the newest checkpoint, and each of the unfinished folder, in each way."""
    ways: dict[str, Callable[[Path], None]] = {
        "a bit flipped": _flip, "cut short": _cut, "empty": lambda path: path.write_bytes(b"") and None,
        "missing": Path.unlink,
    }  # fmt: skip
    names = ["manifest.json", "state.json", "state.safetensors", "trainer_state.json"]
    for what, hurt in ways.items():
        began, cases = time.monotonic(), []
        for name in names:
            newest = runs.stopped() / CHECKPOINTS / NEWEST
            hurt(newest / name)
            done = runs.scene.resume(runs.out)
            wrong = [] if done.code == 0 else [f"{name}: exit {done.code}: {done.said[-300:]}"]
            wrong += _passed_over(runs.out, name) if done.code == 0 else []
            wrong += flaws(runs.out, runs.quiet)
            cases.append(Case(code=done.code, then="from the one before", repeated=1, wrong=tuple(wrong)))
        yield row(f"newest checkpoint: {what}", "each of its 4 files", cases, began)
    began, cases = time.monotonic(), []
    for name in ("run.json", "events.jsonl"):
        for hurt in ways.values():
            hurt(runs.stopped() / name)
            done = runs.scene.resume(runs.out)
            wrong = [] if done.code == 0 else [f"{name}: exit {done.code}: {done.said[-300:]}"]
            found = [] if done.code else flaws(runs.out, runs.quiet)
            wrong += [text for text in found if not (name == "events.jsonl" and "half a line" in text)]
            wrong += [] if done.code else _before_wrong(runs)
            cases.append(Case(code=done.code, then="", wrong=tuple(f"{name}: {text}" for text in wrong)))
    yield row("run.json, events.jsonl: damaged", "each in each way", cases, began)
    began, cases = time.monotonic(), []
    for hurt in (_cut, lambda path: path.write_bytes(b"") and None, Path.unlink):
        hurt(runs.stopped() / "plan.toml")
        done = runs.scene.resume(runs.out)
        wrong = [] if done.code == 2 and "plan.toml" in done.said else [done.said[-300:]]
        shutil.copy(runs.plan, unfinished(runs.out) / "plan.toml")
        wrong += [] if runs.scene.resume(runs.out).code == 0 else ["not resumed with the plan put back"]
        wrong += flaws(runs.out, runs.quiet)
        cases.append(Case(code=done.code, then="resumed once the plan is back", wrong=tuple(wrong)))
    yield row("plan.toml of the run: cut, empty, missing", "of a stopped run", cases, began)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _passed_over(out: Path, name: str) -> list[str]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    resumed = next(event for event in events if event["event"] == "resumed")
    told = resumed["step"] == 2 and any(NEWEST in text and name in text for text in resumed["skipped"])
    return [] if told else [f"{name}: {resumed}"]


def _before_wrong(runs: Runs) -> list[str]:
    is_, was = (json.loads((o / "result.json").read_text(encoding="utf-8"))["before"] for o in (runs.out, runs.quiet))
    return [] if is_["loss"] == was["loss"] else [f"loss before training is {is_['loss']}, was {was['loss']}"]


def beneath(runs: Runs) -> Iterator[Row]:
    """What a run was made from goes, or changes, while it goes."""
    scene = runs.scene
    model, data, home = scene.model, scene.data, scene.home
    kept = scene.folder / "kept"
    for fault, act in (
        ("the model's folder is deleted", lambda: shutil.rmtree(model)),
        ("autoft's cache is deleted", lambda: shutil.rmtree(home)),
        ("the data file is changed", lambda: _change(data)),
    ):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(model, kept)
        rows = data.read_bytes()
        began = time.monotonic()
        clear(scene)
        first = scene.run(runs.out, runs.plan, before=at_step(3, act))
        model.mkdir(exist_ok=True)
        shutil.copytree(kept, model, dirs_exist_ok=True)
        data.write_bytes(rows)
        home.mkdir(exist_ok=True)
        case = settle(scene, runs.out, runs.plan, runs.quiet, first, (0,))
        yield row(fault, "after step 3", [case], began)
    yield single("the data file is changed", "between stop and resume", lambda: _changed_between(runs))
    yield single("two runs in one folder", "the second after step 3 of the first", lambda: _two(runs))
    yield single("a worker that loads data dies", "while training", lambda: _workers(runs))


def _change(data: Path) -> None:
    lines = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([*lines[:-1], json.dumps({"prompt": "new", "completion": "row"})]) + "\n")


def _changed_between(runs: Runs) -> tuple[str, str, bool | None, list[str]]:
    runs.stopped()
    rows = runs.scene.data.read_bytes()
    _change(runs.scene.data)
    refused = runs.scene.resume(runs.out)
    wrong = [] if refused.code == 2 and "have changed" in refused.said else [refused.said[-300:]]
    saved = shutil.copytree(unfinished(runs.out), runs.scene.folder / "aside", dirs_exist_ok=True)
    accepted = runs.scene.resume(runs.out, "--accept-changes")
    wrong += [] if accepted.code == 0 else [accepted.said[-300:]]
    runs.scene.data.write_bytes(rows)
    shutil.rmtree(runs.out)
    shutil.move(saved, unfinished(runs.out))
    wrong += [] if runs.scene.resume(runs.out).code == 0 else ["not resumed with the data put back"]
    same = learnt(runs.out) == learnt(runs.quiet)
    return "named, exit 2; goes on with --accept-changes, or bit for bit once put back", "nothing", same, wrong


def _two(runs: Runs) -> tuple[str, str, bool | None, list[str]]:
    clear(runs.scene)
    told = runs.scene.folder / "second"

    def second() -> None:
        codes = []
        for words in (("run", runs.plan, "-o", runs.out, "--force"), ("run", runs.plan, "-o", runs.out),
                      ("resume", runs.out)):  # fmt: skip
            child = os.fork()
            if child == 0:
                os._exit(runs.scene.act(lambda words=words: autoft(*words)))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        told.write_text(json.dumps(codes), encoding="utf-8")

    first = runs.scene.run(runs.out, runs.plan, before=at_step(3, second))
    codes = json.loads(told.read_text(encoding="utf-8"))
    wrong = [] if codes == [2, 2, 2] else [f"exit codes of the second: {codes}"]
    wrong += [] if first.code == 0 else [first.said[-300:]]
    wrong += flaws(runs.out, runs.quiet)
    return "run, run --force and resume refused, exit 2; the first went on", "nothing", True, wrong


def _workers(runs: Runs) -> tuple[str, str, bool | None, list[str]]:
    clear(runs.scene)
    told = runs.scene.folder / "children"

    def count() -> None:
        import psutil

        told.write_text(str(len(psutil.Process().children(recursive=True))), encoding="utf-8")

    done = runs.scene.run(runs.out, runs.plan, before=at_step(3, count))
    wrong = [] if done.code == 0 and told.read_text(encoding="utf-8") == "0" else [f"children: {told.read_text()}"]
    return "cannot be: rows are in memory, a run has no other process (counted: 0)", "nothing", None, wrong
