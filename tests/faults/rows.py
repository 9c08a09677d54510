"""All rows of the table, by the name that `--only` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.faults import rows_run as runs
from tests.faults import rows_writes as writes
from tests.faults.scene import Scene
from tests.faults.table import Row, Skipped


def _writes(scene: Scene, every: int) -> Iterator[Row | Skipped]:
    if scene.shim is None:
        yield Skipped("kill -9 and full disks at every change of a file", "no C compiler, or no Linux")
        return
    yield writes.checkpoint_changes(scene)
    run = writes.Writes(scene, every)
    yield from writes.kills(run)
    yield writes.kills_of_a_replacement(run)
    yield writes.kills_at_random(run, 12 if every == 1 else 2)
    yield from writes.full_disks(run)
    yield from writes.small_disks(run)
    yield writes.clock_jumps(run)


ROWS: dict[str, Callable[[Scene, int], Iterator[Row | Skipped]]] = {
    "memory": lambda scene, _: runs.memory(runs.Runs(scene)),
    "not finite": lambda scene, _: runs.not_finite(runs.Runs(scene)),
    "signals": lambda scene, _: runs.signals(runs.Runs(scene)),
    "damage": lambda scene, _: runs.damage(runs.Runs(scene)),
    "beneath": lambda scene, _: runs.beneath(runs.Runs(scene)),
    "writes": _writes,
}
