"""All rows of the table, by the name that `--only` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.faults import rows_run as runs
from tests.faults import rows_writes as writes
from tests.faults.scene import Scene
from tests.faults.table import Row, Skipped

Rows = Iterator[Row | Skipped]


def _shimmed(name: str, rows: Callable[[writes.Writes], Rows]) -> Callable[[Scene, int], Rows]:
    def all_of(scene: Scene, every: int) -> Rows:
        if scene.shim is None:
            yield Skipped(name, "no C compiler, or no Linux")
        else:
            yield from rows(writes.Writes(scene, every))

    return all_of


ROWS: dict[str, Callable[[Scene, int], Rows]] = {
    "memory": lambda scene, _: runs.memory(runs.Runs(scene)),
    "not finite": lambda scene, _: runs.not_finite(runs.Runs(scene)),
    "processes": lambda scene, _: runs.processes(runs.Runs(scene)),
    "signals": lambda scene, _: runs.signals(runs.Runs(scene)),
    "terminal": lambda scene, _: runs.terminal(runs.Runs(scene)),
    "damage": lambda scene, _: runs.damage(runs.Runs(scene)),
    "beneath": lambda scene, _: runs.beneath(runs.Runs(scene)),
    "checkpoint": _shimmed("a checkpoint's save", lambda run: iter([writes.checkpoint_changes(run.scene)])),
    "kills": _shimmed("kill -9 at every change of a file", writes.kills),
    "replacement": _shimmed("a killed replacement", lambda run: iter([writes.kills_of_a_replacement(run)])),
    "resumed": _shimmed("a killed resume", lambda run: iter([writes.kills_of_a_resumed_run(run)])),
    "random": _shimmed("kill -9 at random", lambda run: iter([writes.kills_at_random(run, 12)])),
    "power": _shimmed("power lost", lambda run: iter([writes.power(run)])),
    "full disks": _shimmed("full disks at every change of a file", writes.full_disks),
    "small disks": _shimmed("a real full disk", writes.small_disks),
    "clock": _shimmed("clock jumps", lambda run: iter([writes.clock_jumps(run)])),
}
