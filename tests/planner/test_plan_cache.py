"""Plans kept: the same question has the same answer, and nothing that a plan depends on may have changed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.planner.plan import cached_plans
from autoft.planner.plan.make import make_plan
from autoft.planner.request import Request
from autoft.profiles.detect import detect
from autoft.profiles.hardware import Hardware

HARDWARE = replace(detect(), gpus=())


@pytest.fixture
def request_here(tiny_model, data_file) -> Request:
    return Request(model=str(tiny_model), data=str(data_file), gpu="rtx-4090")


def key(request: Request, hardware: Hardware = HARDWARE) -> str:
    question = cached_plans.ask(request, hardware)
    assert question is not None
    return question.key


def test_what_was_kept_is_recalled_and_only_for_the_same_question(request_here) -> None:
    plan, _ = make_plan(request_here, HARDWARE)
    question = cached_plans.ask(request_here, HARDWARE)
    assert question is not None
    assert cached_plans.recall(question) is None
    cached_plans.keep(question, plan)
    assert cached_plans.recall(question) == plan
    for change in ({"prefer": "speed"}, {"seq_len": 64}, {"gpu": "t4"}, {"preset": "code"}, {"max_hours": 9.0}):
        assert key(replace(request_here, **change)) != question.key


def test_other_data_and_another_tokenizer_are_other_questions(request_here, tmp_path, tiny_model) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(Path(str(request_here.data)).read_bytes())
    copied = replace(request_here, data=str(data))
    before = key(copied)
    data.write_text(data.read_text() + '{"prompt": "one more", "completion": "row"}\n')
    assert key(copied) != before
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    other = replace(request_here, model=str(folder))
    before = key(other)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": "left"}))
    assert key(other) != before


def test_a_plan_is_not_recalled_where_memory_is_other_than_it_was(request_here) -> None:
    question = cached_plans.ask(request_here, HARDWARE)
    assert question is not None
    cached_plans.keep(question, make_plan(request_here, HARDWARE)[0])
    room = question.target.available_bytes
    for share, found in ((1.0, True), (0.97, True), (1.03, True), (0.9, False), (1.1, False)):
        target = replace(question.target, available_bytes=int(room * share))
        plan = cached_plans.recall(replace(question, target=target))
        assert (plan is not None) == found
        assert plan is None or plan.estimate.available_bytes == int(room * share)


def test_a_broken_entry_is_no_plan(request_here) -> None:
    question = cached_plans.ask(request_here, HARDWARE)
    assert question is not None
    cached_plans.keep(question, make_plan(request_here, HARDWARE)[0])
    path = cached_plans.SHELF.path(question.key)
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"[]", whole.replace(b"RTX", b"RTZ", 1)):
        path.write_bytes(broken)
        assert cached_plans.recall(question) is None


def test_what_comes_from_the_hub_is_planned_anew(data_file) -> None:
    assert cached_plans.ask(Request(model="llama-3.1-8b", gpu="t4", data=str(data_file)), HARDWARE) is None
    assert cached_plans.ask(Request(model="llama-3.1-8b", gpu="t4"), HARDWARE) is not None


def test_asked_again_it_is_answered_without_torch(request_here) -> None:
    question = cached_plans.ask(request_here, HARDWARE)
    assert question is not None
    cached_plans.keep(question, make_plan(request_here, HARDWARE)[0])
    script = (
        "import sys\n"
        "from autoft.cli import main\n"
        "try:\n"
        "    main.main(sys.argv[1:])\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    words = ["plan", request_here.model, "--data", str(request_here.data), "--gpu", "rtx-4090", "--json"]
    again, anew = (
        subprocess.run([sys.executable, "-c", script, *words, *more], capture_output=True, text=True, check=False)
        for more in ((), ("--no-cache",))
    )
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "False")
    assert (anew.returncode, anew.stderr.splitlines()[-1]) == (0, "True")
    assert json.loads(again.stdout)["job"] == json.loads(anew.stdout)["job"]
