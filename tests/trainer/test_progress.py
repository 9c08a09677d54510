"""What a run has taken: time by stage and energy, of all the processes that it took."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from autoft.trainer.storage.progress import Progress
from tests.profiles.conftest import FakeDriver, driver  # noqa: F401 - a fixture


def test_a_process_that_takes_up_a_run_adds_what_it_takes() -> None:
    first = Progress()
    with first.energy(iter([5.0, 7.0, 0.0]).__next__), first.stage("train"):
        first.step = 3
        kept = json.loads(json.dumps(first.state()))
    assert (kept["step"], kept["energy_j"]) == (3, 5.0)
    assert first.energy_j == 5.0 + 7.0
    second = Progress()
    with second.energy(iter([2.0, 1.0, 4.0, 0.0]).__next__):
        with second.stage("load"):
            pass
        second.restore(kept)
        with second.stage("train"):
            pass
    assert second.energy_j == 5.0 + 2.0 + 1.0 + 4.0
    assert second.step == 3
    assert list(second.stages) == ["train", "load"]
    assert second.stages["train"] > kept["stages"]["train"]


def test_energy_that_was_not_told_once_is_not_known() -> None:
    progress = Progress()
    with progress.energy(iter([5.0, None]).__next__):
        progress.settle()
    assert progress.energy_j is None
    untold = Progress()
    untold.settle()
    assert untold.energy_j is None
    with progress.energy(iter([1.0] * 3).__next__):
        progress.restore(untold.state())
    assert progress.energy_j is None


METER = """
import json, sys
from autoft.trainer.runtime.energy import energy_meter
with energy_meter(json.loads(sys.argv[1])) as take:
    print(json.dumps([take(), take()]))
"""


@pytest.mark.parametrize(
    ("scenario", "gpus", "expected"),
    # the stand-in's one counter goes up by 1,800 J whenever a card is asked, and both are asked each time
    [("two", [], [7200, 7200]), ("two", ["GPU-cccc"], [3600, 3600]), ("none", [], [None, None])],
)
def test_what_the_cards_of_a_run_draw(
    driver: FakeDriver,  # noqa: F811
    scenario: str,
    gpus: list[str],
    expected: list[float | None],
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", METER, json.dumps(gpus)],
        env=driver.environment(scenario),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(told.stdout) == expected
