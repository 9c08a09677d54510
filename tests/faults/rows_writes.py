"""Rows of the table: killed, or refused by the disk, at every change of a file that a run makes."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from autoft.trainer.storage.ownership import CHECKPOINTS
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.scene import CLOCK, FAIL, FAIL_HALF, KILL, KILL_HALF, Harm, Scene, at_step, send, small_disk
from tests.faults.table import Case, Row, Skipped, clear, row, settle, single

DISK = (0, 4)
TAKES_ROOM = ("open", "mkdir", "ftruncate64", "write", "pwrite", "fsync", "fdatasync", "rename")


class Writes:
    """A run of two steps, a checkpoint after each, and all changes of files that it makes.

    every: one of so many of them is tried.
    """

    def __init__(self, scene: Scene, every: int = 1) -> None:
        self.scene, self.every = scene, every
        self.plan = scene.plan(max_steps=2)
        self.quiet, self.out = scene.work / "quiet2", scene.work / "out"
        shutil.rmtree(self.quiet, ignore_errors=True)
        began = time.monotonic()
        self.changes = scene.changes(self.plan, out=self.quiet)
        self.quiet_s = time.monotonic() - began
        assert self.changes, "no change was counted: the shim is not in front"

    def first(self, *words: str) -> int:
        """Number of the first change with these words."""
        return next(n for n, change in enumerate(self.changes, 1) if all(word in change for word in words))

    def parts(self) -> Iterator[tuple[str, range]]:
        """The run's parts, with the numbers of their changes."""
        saved = self.first("rename", "checkpoints/step-00000000") + 1
        second = self.first("mkdir", ".writing-step-00000001")
        last = self.first("mkdir", ".writing-step-00000002")
        final = next(
            n
            for n, change in enumerate(self.changes, 1)
            if n > last and "events.jsonl" not in change and "checkpoints" not in change
        )
        renamed = self.changes.index(f"rename {self.quiet}") + 1
        bounds = [1, saved, second, last, final, renamed + 1, len(self.changes) + 1]
        names = [
            "beginning, up to the first checkpoint",
            "evaluation and first step",
            "second checkpoint, second step",
            "third checkpoint, last evaluation",
            "saving of the result, up to its folder's name",
            "tidying, and the history of runs",
        ]
        for name, low, high in zip(names, bounds, bounds[1:], strict=False):
            yield name, range(low, high)

    def last_words(self) -> list[str]:
        """Of the files of the result, those that were not on the disk for sure when the run's folder got its name."""
        renamed = self.changes.index(f"rename {self.quiet}")
        synced = {change.rpartition("/")[2] for change in self.changes[:renamed] if change.startswith("fsync ")}
        return sorted({path.name for path in self.quiet.iterdir()} - synced)

    def each(self, numbers: range) -> range:
        """Of `numbers`, those to try."""
        return numbers[:: self.every]

    def case(self, harm: Harm, allowed: tuple[int, ...]) -> Case:
        """One run with that harm, and what its user does then."""
        clear(self.scene)
        first = self.scene.run(self.out, self.plan, harm=harm)
        case = settle(self.scene, self.out, self.plan, self.quiet, first, allowed)
        return replace(
            case, wrong=tuple(f"change {harm.at}, {self.changes[harm.at - 1]}: {text}" for text in case.wrong)
        )


def kills(writes: Writes) -> Iterator[Row]:
    """kill -9 before every change, and after half of every write."""
    for name, numbers in writes.parts():
        began = time.monotonic()
        harms = [Harm(KILL, n) for n in writes.each(numbers)]
        halves = [n for n in numbers if "write " in writes.changes[n - 1]]
        harms += [Harm(KILL_HALF, n) for n in halves[:: writes.every]]
        cases = [writes.case(harm, (-9,)) for harm in harms]
        yield row("kill -9 before every change, and in every write", name, cases, began)


def kills_of_a_replacement(writes: Writes) -> Row:
    """The same while a finished run is replaced with --force: there is always an old or a new one."""
    scene, out = writes.scene, writes.out
    clear(scene)
    shutil.copytree(writes.quiet, out)
    changes = scene.changes(writes.plan, "--force", out=out)
    start = changes.index(next(c for c in changes if c.endswith(".replaced")))
    began, cases = time.monotonic(), []
    for n in range(start, len(changes) + 1)[:: writes.every]:
        clear(scene)
        shutil.copytree(writes.quiet, out)
        (out / "mark").write_text("the old one", encoding="utf-8")
        first = scene.run(out, writes.plan, "--force", harm=Harm(KILL, n))
        old = [folder for folder in (out, out.with_name(".out.replaced")) if (folder / "mark").exists()]
        if (out / "mark").exists():
            shutil.rmtree(out)  # the new one has not come to its place: it is to be resumed
        case = settle(scene, out, writes.plan, writes.quiet, first)
        gone = [] if old or case.then == "whole already" or first.code == 0 else ["neither old nor new was there"]
        wrong = [f"change {n}, {changes[n - 1]}: {text}" for text in (*gone, *case.wrong)]
        cases.append(replace(case, wrong=tuple(wrong)))
    return row("kill -9 while a finished run is replaced (--force)", "every change from the renames on", cases, began)


def kills_of_a_resumed_run(writes: Writes) -> Row:
    """The same while a run that was stopped after its first step is taken up, its newest checkpoint damaged."""
    scene, out = writes.scene, writes.out
    clear(scene)
    assert scene.run(out, writes.plan, before=at_step(1, send(signal.SIGTERM))).code == 4
    damaged = unfinished(out) / CHECKPOINTS / "step-00000001" / "state.json"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    stopped = scene.folder / "stopped-after-1"
    shutil.copytree(unfinished(out), stopped)
    log = scene.folder / "resume-changes"
    assert scene.resume(out, log=log).code == 0
    changes = log.read_text(encoding="utf-8").splitlines()
    began, cases = time.monotonic(), []
    for n in range(1, len(changes) + 1)[:: writes.every]:
        clear(scene)
        shutil.copytree(stopped, unfinished(out))
        first = scene.resume(out, harm=Harm(KILL, n))
        case = settle(scene, out, writes.plan, writes.quiet, first)
        cases.append(replace(case, wrong=tuple(f"change {changes[n - 1]}: {text}" for text in case.wrong)))
    return row("kill -9 while a run is resumed", "every change, the newest checkpoint damaged", cases, began)


def kills_at_random(writes: Writes, number: int) -> Row:
    """kill -9 from outside, at moments that have nothing to do with writing."""
    draw, began, cases = random.Random(0), time.monotonic(), []
    for _ in range(number):
        clear(writes.scene)
        first = writes.scene.run(writes.out, writes.plan, kill_after_s=draw.uniform(0.2, 1.0) * writes.quiet_s)
        cases.append(settle(writes.scene, writes.out, writes.plan, writes.quiet, first))
    return row("kill -9 from outside", "random moments", cases, began)


def power(writes: Writes) -> Row:
    """Not caused, but read off the changes: nothing is named or removed before what it rests on is on the disk."""
    left = writes.last_words()
    said = "every file of the result is made durable before its folder gets its name"
    return single(
        "power lost at the end",
        "by the order of changes",
        lambda: (said, "nothing", None, [f"not synced: {left}"] * bool(left)),
    )


def full_disks(writes: Writes) -> Iterator[Row]:
    """No room from some change on until the run has ended; then there is room again, and it is resumed."""
    kinds = [
        ("disk full from then on", FAIL, errno.ENOSPC, False, TAKES_ROOM),
        ("disk full once", FAIL, errno.ENOSPC, True, TAKES_ROOM),
        ("disk full in the midst of a write", FAIL_HALF, errno.ENOSPC, False, ("write",)),
        ("quota used up from then on", FAIL, errno.EDQUOT, False, ("write",)),
        ("input/output error once", FAIL, errno.EIO, True, ("write", "fsync")),
        ("disk turned read-only from then on", FAIL, errno.EROFS, False, ("write",)),
    ]
    for fault, what, code, once, only in kinds:
        began = time.monotonic()
        numbers = [n for n, change in enumerate(writes.changes, 1) if change.split()[0] in only]
        cases = [writes.case(Harm(what, n, code, once), DISK) for n in numbers[:: writes.every]]
        when = "that takes room" if only == TAKES_ROOM else f"that is a {' or '.join(only)}"
        yield row(fault, f"every change of a run {when}", cases, began)


def small_disks(writes: Writes) -> Iterator[Row | Skipped]:
    """A real filesystem of 128 MiB that another fills to the last byte, and one that is read-only."""
    scene = writes.scene
    clear(scene)
    with small_disk(scene.work / "disk", "128m") as disk:
        if disk is None:
            yield Skipped("real small disk", "mounting is not allowed here")
            return
        began, cases = time.monotonic(), []
        for step in (1, 2):
            out = disk / "out"
            first = scene.run(out, writes.plan, before=at_step(step, lambda: _fill(disk / "another's")))
            (disk / "another's").unlink()
            cases.append(settle(scene, out, writes.plan, writes.quiet, first, DISK))
            shutil.rmtree(out)
            (disk / ".out.lock").unlink(missing_ok=True)
        yield row("a real disk of 128 MiB, filled by another", "after step 1, after step 2", cases, began)
    shutil.rmtree(scene.work / "disk")
    with small_disk(scene.work / "disk", "128m", read_only=True) as disk:
        assert disk is not None
        yield single("read-only output folder", "before the run", lambda: _refused(scene, disk / "out", writes.plan))
    shutil.rmtree(scene.work / "disk")


def _fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
    except OSError:
        return


def _refused(scene: Scene, out: Path, plan: Path) -> tuple[str, str, bool | None, list[str]]:
    done = scene.run(out, plan)
    wrong = [] if done.code == 2 and "cannot be written to" in done.said else [done.said[-300:]]
    return f"refused before loading, exit {done.code}", "nothing", None, wrong


def clock_jumps(writes: Writes) -> Row:
    """The clock of the day goes ten years on, and ten back, in the midst of the training."""
    began, cases = time.monotonic(), []
    at = writes.first("mkdir", ".writing-step-00000001")
    for years in (10, -10):
        clear(writes.scene)
        log = writes.scene.folder / "clock"
        log.unlink(missing_ok=True)
        harm = Harm(CLOCK, at, years * 365 * 86400)
        first = writes.scene.run(writes.out, writes.plan, harm=harm, log=log)
        case = settle(writes.scene, writes.out, writes.plan, writes.quiet, first, (0,))
        wrong = [*case.wrong, *_times_wrong(writes.out)]
        many = sum("rename" in line and "/step-" in line for line in log.read_text(encoding="utf-8").splitlines())
        wrong += [] if many == 3 else [f"{many} checkpoints instead of 3"]
        cases.append(replace(case, wrong=tuple(wrong)))
    return row("the clock jumps ten years on, ten back", "before the second checkpoint", cases, began)


def _times_wrong(out: Path) -> list[str]:
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    figures = {**result["seconds"], "step_time_s": result["measured"]["step_time_s"]}
    return [f"{name} is {value}" for name, value in figures.items() if not 0 <= value < 3600]


def checkpoint_changes(scene: Scene) -> Row:
    """The same for `write_checkpoint` and `retain` alone: afterwards the old or the new one is whole and loads."""
    began, cases = time.monotonic(), []
    clear(scene)
    log = scene.folder / "checkpoint-changes"
    log.unlink(missing_ok=True)
    parent = scene.work / "one"
    assert scene.child(lambda: _write(parent, 1)).code == 0
    old = shutil.copytree(parent, scene.work / "old")
    assert scene.child(lambda: _write(parent, 2), log=log).code == 0
    lines = [line.split(" ", 1)[1] for line in log.read_text(encoding="utf-8").splitlines()]
    kinds = [(n, line.split()[0]) for n, line in enumerate(lines, 1)]
    harms = [Harm(KILL, n) for n, _ in kinds]
    harms += [Harm(KILL_HALF, n) for n, kind in kinds if kind == "write"]
    harms += [Harm(FAIL, n, errno.ENOSPC, once) for n, kind in kinds for once in (True, False) if kind in TAKES_ROOM]
    places = []
    for at, harm in enumerate(harms):
        place = shutil.copytree(old, scene.work / f"each-{at}")
        places.append((place, harm, scene.child(lambda place=place: _write(place, 2, tolerant=True), harm).code))
    judged = scene.child(lambda: print("\n".join(_judged(place) or "-" for place, _, _ in places)))
    for (_, harm, code), text in zip(places, judged.said.splitlines(), strict=True):
        wrong = () if text == "-" else (f"{lines[harm.at - 1]}: {text}",)
        cases.append(Case(code=code, then="", wrong=wrong))
    return row(
        "kill -9, in a write too; disk full, once and for good",
        "every change of one checkpoint's save",
        cases,
        began,
        same=None,
    )


def _write(parent: Path, step: int, *, tolerant: bool = False) -> None:
    import torch

    from autoft.trainer.storage.checkpoint import retain, write_checkpoint

    state = {"weights": {"a": torch.full((3000,), float(step))}, "step": step, "random": [1, (2, None)]}
    try:
        write_checkpoint(parent, step, state, {"trainer_state.json": "{}"}, run_id="r", identity={})
        retain(parent, 1)
    except OSError:
        if not tolerant:
            raise


def _judged(parent: Path) -> str:
    """What is wrong with the newest checkpoint there; empty when nothing is."""
    from autoft.trainer.storage.checkpoint import newest_checkpoint

    kept, _ = newest_checkpoint(parent, run_id="r")
    if kept is None:
        return "no checkpoint is left"
    state = kept.state()
    same = state["step"] == kept.step and bool((state["weights"]["a"] == float(kept.step)).all())
    return "" if same else f"step {kept.step} loads as something else"
