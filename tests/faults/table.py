"""What a fault did: one case, and the row of the table that sums up its like."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoft.trainer.storage.checkpoint import newest_checkpoint
from autoft.trainer.storage.ownership import CHECKPOINTS, RUN
from autoft.trainer.storage.run_folder import unfinished
from tests.faults.scene import Done, Scene, flaws

CODES = {
    -9: "killed", 0: "finished", 1: "failed, exit 1", 2: "refused, exit 2", 4: "stopped, exit 4",
    130: "stopped, exit 130",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """code: of the run that was hurt. then: what it took to finish. repeated: steps made again. wrong: what should not
    be."""

    code: int
    then: str
    repeated: int = 0
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """same: the weights afterwards are those of a quiet run; None where there is nothing to compare."""

    fault: str
    when: str
    cases: int
    happened: str
    lost: str
    same: bool | None
    holds: bool
    wrong: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Skipped:
    fault: str
    reason: str


def clear(scene: Scene) -> None:
    """Leave of earlier cases the quiet runs only."""
    for path in scene.work.iterdir():
        if path != scene.home and not path.name.removeprefix(".").startswith("quiet"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def settle(scene: Scene, out: Path, plan: Path, quiet: Path, first: Done, allowed: Iterable[int] = (-9,)) -> Case:
    """Do after a fault what its user would: resume, or where there was no checkpoint yet, run again."""
    wrong = [] if first.code in (*allowed, 0) else [f"exit {first.code}: {first.said.strip()[-300:]}"]
    then, repeated = "", 0
    if not (out / "result.json").is_file():
        kept, skipped = newest_checkpoint(unfinished(out) / CHECKPOINTS)
        if kept is None:
            then = "run again"
            wrong = [] if first.code in (*allowed, 0, 1, 2, 130) else wrong
            second = scene.run(out, plan)
        else:
            then = "resumed"
            repeated = _steps_done(unfinished(out)) - kept.step
            second = scene.resume(out)
        wrong += [f"{then}: exit {second.code}: {second.said.strip()[-300:]}"] if second.code else []
        wrong += [f"told after {skipped}"] if then == "run again" and skipped else []
    else:
        then = "finished" if first.code == 0 else "whole already"
        if any((out / name).exists() for name in (CHECKPOINTS, RUN)) or first.code:
            scene.resume(out)  # says that it is finished, and tidies
    wrong += flaws(out, quiet)
    return Case(code=first.code, then=then, repeated=max(0, repeated), wrong=tuple(wrong))


def row(fault: str, when: str, cases: list[Case], began: float, *, same: bool | None = True) -> Row:
    """The row of `cases`, the same fault at other moments."""
    said = Counter(
        CODES.get(case.code, f"exit {case.code}") + (f", {case.then}" if case.then not in ("", "finished") else "")
        for case in cases
    )
    most = max((case.repeated for case in cases), default=0)
    again = any(case.then == "run again" for case in cases)
    lost = "nothing" if most == 0 else f"up to {most} step{'s' if most > 1 else ''}, made again"
    wrong = tuple(dict.fromkeys(text for case in cases for text in case.wrong))
    return Row(
        fault=fault,
        when=when,
        cases=len(cases),
        happened="; ".join(f"{text} ({number})" if len(said) > 1 else text for text, number in said.most_common()),
        lost=lost + (" (before the first checkpoint: the start)" if again else ""),
        same=None if same is None else not any("weights" in text for text in wrong),
        holds=not wrong,
        wrong=wrong[:5],
        seconds=round(time.monotonic() - began, 1),
    )


def single(fault: str, when: str, act: Callable[[], tuple[str, str, bool | None, list[str]]]) -> Row:
    """A row of one case: act gives (what happened, what was lost, same weights, what is wrong)."""
    began = time.monotonic()
    happened, lost, same, wrong = act()
    return Row(
        fault=fault, when=when, cases=1, happened=happened, lost=lost, same=same, holds=not wrong and same is not False,
        wrong=tuple(wrong), seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


def _steps_done(folder: Path) -> int:
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    steps = [0]
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        steps += [event["step"]] if event.get("event") == "step" else []
    return max(steps)
