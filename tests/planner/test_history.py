"""The history of runs: kept whole, by several at once, past damage; and the correction that it makes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.errors import OutputError
from autoft.planner.estimate import Correction, Estimate, Range
from autoft.planner.estimator.target import Target, target_of
from autoft.planner.facts import Assumption
from autoft.planner.history import past_runs
from autoft.planner.history.correction import FEWEST, correction_for, warnings, words
from autoft.planner.history.past_runs import PastRun, add, clear, put_aside, runs
from autoft.profiles.bench_store import cpu_key, gpu_key
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Hardware, Host
from autoft.trainer.recipe import Recipe
from autoft.trainer.runtime.environment import of_child

ROOT = Path(__file__).parents[2]
GIB = 2**30
HOST = Host(
    cpu="test", cores=2, ram_total_bytes=16 * GIB, ram_available_bytes=8 * GIB, disk_path="/", disk_free_bytes=GIB
)
CARD = replace(gpu_from_profile("rtx-4090"), origin="nvml", index=0, uuid="GPU-1")
RECIPE = Recipe(base_dtype="float32", seq_len=128)
BASIS = Assumption(kind="time", basis="measured now", text="time: as fast as this was measured to be")
ESTIMATE = Estimate(
    method="rehearsal",
    peak_allocated_bytes=GIB,
    peak_reserved_bytes=GIB,
    device_bytes=GIB,
    available_bytes=2 * GIB,
    fits="yes",
    components={},
    phases={},
    step_time_s=Range(lower=1.0, upper=4.0),
    tokens_per_s=64.0,
    trainable_params=1,
    total_params=2,
    assumptions=(BASIS.text,),
    assumption_records=(BASIS,),
)
KEY = cpu_key(HOST)
RUN = PastRun(
    at="2026-11-25T10:00:00+00:00",
    device=KEY.device,
    device_name=KEY.name,
    circumstances=KEY.circumstances,
    versions=past_runs.installed(),
    model="m",
    recipe=RECIPE.to_dict(),
    finished=True,
    predicted_peak_bytes=GIB,
    predicted_reserved_bytes=GIB,
    predicted_device_bytes=GIB,
    predicted_step_lower_s=1.0,
    predicted_step_upper_s=4.0,
    time_basis="measured now",
    measured_peak_bytes=int(1.5 * GIB),
    measured_step_s=4.0,
    measured_tokens_per_s=32.0,
    steps=100,
)
OTHER = RUN.recipe | {"rank": 3}


def cpu(**changes: object) -> Target:
    host = replace(HOST, **changes)
    return target_of(Hardware(host=host), gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda dtype, shape: 1e11)


def corrected(estimate: Estimate = ESTIMATE, recipe: Recipe = RECIPE, target: Target | None = None) -> Correction:
    found = correction_for(target or cpu(), estimate, recipe)
    assert found is not None
    return found


# --- the file --------------------------------------------------------------------------------------------------------


def test_runs_come_back_as_they_were_newest_first() -> None:
    assert runs() == []
    later = replace(RUN, at="2026-11-25T11:00:00+00:00", finished=False, measured_peak_bytes=None, steps=None)
    elsewhere = replace(RUN, at="2026-11-25T09:00:00+00:00", device="GPU-1", measured_reserved_bytes=5)
    for run in (RUN, later, elsewhere):
        add(run)
    assert runs() == [later, RUN, elsewhere]
    assert runs("GPU-1") == [elsewhere]
    assert clear(["GPU-1"]) == 1
    assert runs() == [later, RUN]
    assert clear() == 2
    assert runs() == []


def test_what_is_cleared_is_gone_from_the_file() -> None:
    add(replace(RUN, model="a-name-to-forget"))
    assert b"a-name-to-forget" in past_runs.path().read_bytes()
    clear()
    assert b"a-name-to-forget" not in past_runs.path().read_bytes()


def test_several_that_write_at_once_lose_nothing() -> None:
    code = (
        "from dataclasses import replace\nfrom tests.planner.test_history import RUN\n"
        "from autoft.planner.history import past_runs\n"
        "for n in range(20): past_runs.put_aside(); past_runs.add(replace(RUN, steps=n))"
    )
    env = {**of_child(), "PYTHONPATH": os.pathsep.join([str(ROOT), of_child()["PYTHONPATH"]])}
    writers = [subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        _, err = writer.communicate()
        assert writer.returncode == 0, err
    assert sorted(run.steps or 0 for run in runs()) == sorted([*range(20)] * 2)


def _no_database() -> None:
    past_runs.path().write_bytes(b"not a database at all, and long enough to be looked at as one" * 40)


def _torn() -> None:
    """A page in the middle overwritten, as a failing disk does."""
    for number in range(40):
        add(replace(RUN, steps=number))
    data = bytearray(past_runs.path().read_bytes())
    data[4096:8192] = os.urandom(4096)
    past_runs.path().write_bytes(data)


def _newer() -> None:
    add(RUN)
    with closing(sqlite3.connect(past_runs.path())) as db:
        db.execute("PRAGMA user_version = 2")


def _of_another_program() -> None:
    with closing(sqlite3.connect(past_runs.path())) as db:
        db.execute("CREATE TABLE runs (what TEXT)")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_database, "damaged"),
        (_torn, "damaged"),
        (_newer, "of a newer autoft (schema 2"),
        (_of_another_program, "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_put_aside_told_once_and_never_stops_a_plan(spoil, reason) -> None:
    spoil()
    spoilt = past_runs.path().read_bytes()
    assert correction_for(cpu(), ESTIMATE, RECIPE) is None
    told = put_aside()
    assert told is not None
    assert reason in told
    assert [path.read_bytes() for path in past_runs.set_aside()] == [spoilt]
    assert put_aside() is None
    add(RUN)
    assert runs() == [RUN]
    past_runs.path().write_bytes(spoilt)
    assert put_aside() is not None
    assert len(past_runs.set_aside()) == 2


def test_an_empty_file_is_one_to_begin_with() -> None:
    past_runs.path().touch()
    assert put_aside() is None
    assert runs() == []
    assert clear() == 0
    add(RUN)
    assert runs() == [RUN]


def test_a_row_that_makes_no_sense_is_left_out() -> None:
    for _ in range(3):
        add(RUN)
    with closing(sqlite3.connect(past_runs.path())) as db, db:
        db.execute("UPDATE runs SET recipe = '[' WHERE rowid = 1")
        db.execute("UPDATE runs SET predicted_peak_bytes = 'many' WHERE rowid = 2")
    assert runs() == [RUN]


def test_a_folder_that_takes_nothing_is_told_with_what_to_do() -> None:
    past_runs.path().mkdir()
    with pytest.raises(OutputError, match=r"history\.sqlite: unable to open") as error:
        add(RUN)
    assert "AUTOFT_HOME" in str(error.value.fix)
    assert correction_for(cpu(), ESTIMATE, RECIPE) is None


# --- the correction --------------------------------------------------------------------------------------------------


def test_one_run_of_the_very_recipe_corrects_beside_the_prediction() -> None:
    assert correction_for(cpu(), ESTIMATE, RECIPE) is None
    add(RUN)
    found = corrected()
    assert found.memory is not None
    assert found.time is not None
    assert (found.memory.median, found.memory.same_recipe, found.device_bytes) == (1.5, True, int(1.5 * GIB))
    # the middle of 1 to 4 s is 2 s
    assert (found.time.median, found.step_time_s) == (2.0, Range(lower=4.0, upper=4.0))
    assert (found.fits, warnings(found, ESTIMATE)) == ("yes", [])
    assert words(found, ESTIMATE) == [
        ("memory", "predicted 1.0 GiB; 1 run of this recipe here measured 1.50 times that: expect 1.5 GiB"),
        (
            "time",
            "predicted 1.0 s to 4.0 s a step; 1 run of this recipe here took 2.00 times the middle of that: "
            "expect 4.0 s",
        ),
    ]
    assert Correction.from_toml(found.to_toml()) == found


def test_the_whole_run_is_corrected_alike() -> None:
    add(RUN)
    assert words(corrected(), ESTIMATE, Range(lower=50.0, upper=200.0))[1][1] == (
        "predicted 50 s to 3 min; 1 run of this recipe here took 2.00 times the middle of that: expect 3 min"
    )


def test_other_recipes_count_from_three_on_by_their_median() -> None:
    for number, measured in enumerate((1.4, 1.6, 9.0)):
        assert correction_for(cpu(), ESTIMATE, RECIPE) is None, "too few"
        add(replace(RUN, recipe=OTHER, measured_peak_bytes=int(measured * GIB), at=f"2026-11-2{number}T10:00:00+00:00"))
    found = corrected()
    assert found.memory is not None
    assert [source.at[:10] for source in found.memory.sources] == ["2026-11-22", "2026-11-21", "2026-11-20"]
    assert found.memory.median == pytest.approx(1.6)
    assert (found.memory.least, found.memory.most) == (pytest.approx(1.4), 9.0)
    assert found.fits == "tight"
    assert words(found, ESTIMATE)[0] == (
        "memory",
        "predicted 1.0 GiB; 3 runs here measured 1.60 times that (1.40 to 9.00): expect 1.6 GiB",
    )
    (warning,) = warnings(found, ESTIMATE)
    assert warning == (
        "memory: going by 3 runs here it may need 1.6 GiB or more, up to 9.00 times the prediction, of 2.0 GiB"
    )
    add(RUN)
    assert corrected().memory.median == 1.5, "the very recipe goes before all others"


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cpu other"},
        {"circumstances": {**KEY.circumstances, "cores": "4"}},
        {"circumstances": {**KEY.circumstances, "OMP_NUM_THREADS": "77"}},
        {"versions": {**RUN.versions, "torch": "1.0.0"}},
        {"versions": {**RUN.versions, "autoft": "99.0"}},
        {"recipe": OTHER | {"method": "qlora", "quant_type": "nf4"}},
        {"recipe": OTHER | {"base_dtype": "bfloat16"}},
        {"recipe": OTHER, "predicted_peak_bytes": GIB // 3},
        {"recipe": OTHER, "predicted_peak_bytes": 3 * GIB},
        {"predicted_peak_bytes": None, "predicted_step_lower_s": None},
        {
            "finished": False,
            "measured_peak_bytes": None,
            "measured_step_s": None,
            "predicted_device_bytes": 2 * GIB,
        },
    ],
)
def test_what_is_not_alike_says_nothing(changes) -> None:
    for _ in range(FEWEST):
        add(replace(RUN, **changes))
    assert correction_for(cpu(), ESTIMATE, RECIPE) is None


def test_a_mending_release_and_another_build_are_the_same_software() -> None:
    major, minor = RUN.versions["torch"].split(".")[:2]
    add(replace(RUN, versions={**RUN.versions, "torch": f"{major}.{minor}.99+cu130"}))
    assert corrected().memory is not None


@pytest.mark.parametrize("changes", [{"steps": 3}, {"time_basis": "data sheet"}, {"measured_step_s": 0.0}])
def test_time_needs_steps_and_a_prediction_of_the_same_basis(changes) -> None:
    add(replace(RUN, **changes))
    found = corrected()
    assert found.memory is not None
    assert (found.time, found.step_time_s) == (None, None)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("measured just now", "measured now"),
        ("from the data sheet", "data sheet"),
        ("from the data sheet and its 250 W limit", "data sheet, held to 250 W"),
        ("measured on 2026-11-25, of which a step is taken to get 70% to 108%", "bench of 2026-11-25"),
        ("data sheet", "data sheet"),
        (None, None),
    ],
)
def test_rows_from_before_time_bases_were_keys_read_as_the_key_of_today(words, key) -> None:
    add(replace(RUN, time_basis=words))
    assert [run.time_basis for run in runs()] == [key]


def test_a_new_wording_of_what_the_time_is_from_keeps_the_corrections() -> None:
    add(RUN)
    reworded = replace(BASIS, text="as quick as can be")
    estimate = replace(ESTIMATE, assumptions=(reworded.text,), assumption_records=(reworded,))
    assert corrected(estimate).time == corrected().time is not None


def test_what_would_not_fit_is_warned_of_and_the_prediction_stays() -> None:
    add(replace(RUN, measured_peak_bytes=3 * GIB))
    found = corrected()
    assert (found.fits, ESTIMATE.fits) == ("no", "yes")
    assert warnings(found, ESTIMATE) == [
        "memory: going by 1 run of this recipe here it may need 3.0 GiB, more than the usable 2.0 GiB"
    ]


def test_on_a_gpu_it_is_what_was_reserved_and_the_context_is_not_scaled() -> None:
    key = gpu_key(CARD, "580")
    assert key is not None
    here = Hardware(host=HOST, gpus=(CARD,), driver_version="580")
    target = target_of(here, gpu_name=None, vram_gib=None, cpu_flops_per_s=lambda dtype, shape: 1e11)
    context = target.device_bytes(0)
    add(
        replace(
            RUN,
            device=key.device,
            device_name=key.name,
            circumstances=key.circumstances,
            measured_peak_bytes=7 * GIB,
            measured_reserved_bytes=int(1.25 * GIB),
        )
    )
    found = corrected(replace(ESTIMATE, device_bytes=GIB + context), target=target)
    assert found.memory is not None
    assert (found.memory.median, found.device_bytes) == (1.25, int(1.25 * GIB) + context)
    catalogue = target_of(here, gpu_name="rtx-4090", vram_gib=None, cpu_flops_per_s=lambda dtype, shape: 1e11)
    assert correction_for(catalogue, ESTIMATE, RECIPE) is None, "a card of the catalogue has run nothing"


def test_a_run_that_ran_out_of_memory_warns_until_one_like_it_went_well() -> None:
    died = replace(
        RUN, finished=False, measured_peak_bytes=None, measured_step_s=None, measured_tokens_per_s=None, steps=None
    )
    add(died)
    found = corrected()
    assert (found.memory, found.time, found.exhausted) == (None, None, (RUN.at,))
    assert warnings(found, ESTIMATE) == [
        "memory: a run predicted to need no more than this ran out of memory here on 2026-11-25"
    ]
    assert correction_for(cpu(), replace(ESTIMATE, device_bytes=GIB // 2), RECIPE) is None, "a smaller one"
    add(replace(RUN, at="2026-11-26T10:00:00+00:00"))
    assert corrected().exhausted == ()
