"""A preset's values are defaults: what the user says wins, and the plan tells which stand and why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from autoft.errors import OptionError
from autoft.planner.plan.make import make_plan
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.planner.search.preset import defaults
from autoft.profiles.detect import detect
from tests.conftest import write_jsonl

HARDWARE = replace(detect(), gpus=())


def planned(model: str, **words: Any) -> Plan:
    return make_plan(Request(model=model, gpu="rtx-3060", **words), HARDWARE)[0]


def test_a_preset_sets_what_the_user_does_not(wide_shape) -> None:
    plan = planned(wide_shape, preset="code")
    job, recipe = plan.job, plan.job.recipe
    assert (plan.preset, plan.prefer) == ("code", "quality")
    assert (recipe.rank, recipe.alpha, recipe.packing, recipe.seq_len) == (64, 128.0, True, 4096)
    assert (job.learning_rate, job.epochs) == (2e-4, 2.0)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_the_plan_says_why_and_what_nothing_acts_on(wide_shape) -> None:
    plan = planned(wide_shape, preset="classification")
    reasons = [reason for reason in plan.reasons if "(" in reason]
    assert "preset: classification, one label for a text" in plan.reasons
    for start in (
        "rank 8: ",
        "learning rate 0.0002: ",
        "packing off: ",
        "target modules all-linear: ",
        "seq len 1024: ",
        "metric exact_match: ",
    ):
        assert sum(reason.startswith(start) for reason in reasons) == 1
    advice = [note for note in plan.notes if note.startswith("preset classification advises `autoft export DIR --to ")]
    assert ["--to safetensors` afterwards: " in note for note in advice] == [True]
    assert plan.job.metric == "exact_match"


def test_options_and_settings_win_over_a_preset(wide_shape) -> None:
    settings = ("rank=4", "epochs=1.5", "packing=false")
    plan = planned(wide_shape, preset="code", seq_len=512, prefer="memory", settings=settings)
    job, recipe = plan.job, plan.job.recipe
    assert (plan.prefer, recipe.rank, recipe.packing, recipe.seq_len, job.epochs) == ("memory", 4, False, 512, 1.5)
    assert recipe.alpha == 32.0  # the preset's belongs to its rank
    note = "preset code: your own settings stand for prefer, rank, alpha, epochs, packing, seq len"
    assert note in plan.notes
    assert not any(reason.startswith(("rank", "alpha", "epochs", "packing", "seq len")) for reason in plan.reasons)


@pytest.mark.parametrize(
    ("answer", "words", "why"),
    [
        ("spam", {}, "fields right says nothing about the held-out answers"),
        ('{"a": 1}', {"settings": ("max_new_tokens=0",)}, "no answers are generated (max_new_tokens is 0)"),
        ('{"a": 1}', {}, None),
    ],
)
def test_a_metric_that_tells_nothing_of_the_answers_gives_way(tmp_path, tiny_model, answer, words, why) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"number {n}", "completion": answer} for n in range(40)])
    plan = planned(str(tiny_model), preset="document-extraction", data=str(data), **words)
    notes = [note for note in plan.notes if "the loss judges" in note]
    if why is None:
        assert (plan.job.metric, notes) == ("fields_right", [])
    else:
        assert (plan.job.metric, notes) == ("loss", [f"preset document-extraction: the loss judges, for {why}"])
        assert not any(reason.startswith("metric") for reason in plan.reasons)


def test_a_metric_of_one_s_own_is_refused_where_it_tells_nothing(tiny_model, data_file) -> None:
    why = "metric=fields_right: fields right says nothing about the held-out answers"
    with pytest.raises(OptionError, match=f"^{why}"):
        planned(str(tiny_model), data=str(data_file), settings=("metric=fields_right",))


def test_epochs_of_one_s_own_lift_a_preset_s_end() -> None:
    assert defaults("prototype", ()).job["max_steps"] == 60
    assert "max_steps" not in defaults("prototype", {"epochs"}).job


def test_a_model_that_cannot_pack_is_planned_without() -> None:
    plan = planned("opt-1.3b", preset="chatbot", settings=("method=lora",))
    assert not plan.job.recipe.packing
    assert "preset chatbot: no packing, for this model cannot keep packed examples apart" in plan.notes
    assert not any(reason.startswith("packing") for reason in plan.reasons)


def test_no_row_is_left_out_for_a_preset(tmp_path, tiny_model) -> None:
    rows = [{"prompt": "word " * 90, "completion": "yes"}, *[{"prompt": "a" * 60, "completion": "b"}] * 300]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"model": str(tiny_model), "data": str(data), "settings": ("eval_rows=1",)}
    free = planned(**common)
    assert planned(**common, preset="style-and-tone").job.recipe.seq_len == free.job.recipe.seq_len
    packed = planned(**common, preset="chatbot")
    assert packed.job.recipe.packing
    assert packed.job.recipe.seq_len == min(2048, packed.shape.max_position) > free.job.recipe.seq_len
    assert packed.workload == free.workload
    assert packed.job.epochs == 3.0


def test_little_data_is_not_packed(tmp_path, tiny_model) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": str(n), "completion": "b"}) + "\n" for n in range(20)))
    plan = planned(str(tiny_model), data=str(data), preset="chatbot", settings=("eval_rows=1",))
    assert not plan.job.recipe.packing
    assert "preset chatbot: no packing, for 1 packed rows are too few for 100 optimizer steps" in plan.notes


def test_an_unknown_preset_is_refused_first() -> None:
    with pytest.raises(OptionError, match="no preset 'chat'"):
        make_plan(Request(model="no such model", preset="chat"), HARDWARE)


def test_the_command_line_takes_a_preset(autoft, tmp_path) -> None:
    done = autoft("plan", "smollm2-135m", "--gpu", "cpu", "--preset", "prototype", "--json")
    assert json.loads(done.out)["job"]["max_steps"] == 60
    done = autoft("plan", "smollm2-135m", "--preset", "protoype")
    assert (done.code, done.out) == (2, "")
    assert "no preset 'protoype'. Did you mean prototype?" in done.err
    plan = tmp_path / "plan.toml"
    plan.write_text("")
    done = autoft("run", plan, "--preset", "edge", "-o", tmp_path / "out")
    assert done.code == 2
    assert "--preset does not go with a plan file" in done.err
