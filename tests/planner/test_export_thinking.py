"""What data made of a chat template's thinking goes to other trainers, or is said to be missing there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoft.planner.export.write import export_config
from autoft.planner.plan.record import Plan
from autoft.planner.workload import measure
from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.data.thinking import Switched, switched
from autoft.trainer.sources.resolve import ModelRef
from tests.conftest import make_tokenizer
from tests.planner.test_export_config import a_plan

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n"
NO_SWITCH = TURNS + ASKS + "<think>\n{% endif %}"
SWITCH = (
    TURNS + ASKS + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
TOOLS: tuple[str, ...] = ("axolotl", "llamafactory", "trl", "unsloth")


def planned(folder: Path, template: str, **thinking: Any) -> tuple[Plan, Prepared]:
    """A plan whose data were read under this template."""
    plan = a_plan(folder, "lora", "pairs")
    ref = ModelRef(name="tiny", kind="folder", path=folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    prepared = prepare(ref, str(plan.job.data), ready=(tokenizer, None), stops=(), **thinking)
    return replace(plan, workload=measure(prepared)), prepared


def exports(plan: Plan, tool: str, folder: Path) -> tuple[str, dict[str, Any], str]:
    """(the configuration, the first row, the notes) for a tool."""
    out = folder / "x.yaml"
    export = export_config(plan, tool, out, where="plan.toml")
    row = json.loads(export.files[folder / "x-data" / "train.jsonl"].splitlines()[0])
    return export.files[out], row, "\n".join(export.notes)


def prompt(tokenizer: Any, **variables: Any) -> str:
    turns = [{"role": "user", "content": "a"}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **variables))


def test_a_switch_that_the_data_set_is_carried_in_each_tool_s_own_words(tmp_path: Path) -> None:
    plan, prepared = planned(tmp_path, SWITCH)
    assert plan.workload is not None
    assert plan.workload.template_value == "enable_thinking=false"
    text, _, _ = exports(plan, "axolotl", tmp_path)
    assert yaml.safe_load(text)["chat_template_kwargs"] == {"enable_thinking": False}
    text, _, notes = exports(plan, "llamafactory", tmp_path)
    assert yaml.safe_load(text)["enable_thinking"] is False
    assert "heeds enable_thinking only where template names one of its own" in notes
    _, row, _ = exports(plan, "trl", tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = SWITCH
    assert prompt(tokenizer, **row["chat_template_kwargs"]) == prompt(prepared.tokenizer) != prompt(tokenizer)


@pytest.mark.parametrize("template", [SWITCH, NO_SWITCH])
def test_the_unsloth_script_makes_the_template_of_the_run(tmp_path: Path, template: str) -> None:
    plan, prepared = planned(tmp_path, template)
    script, _, _ = exports(plan, "unsloth", tmp_path)
    (line,) = (line for line in script.splitlines() if line.startswith("tokenizer.chat_template ="))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    exec(line, {"tokenizer": tokenizer})  # as its users run it
    assert tokenizer.chat_template == prepared.tokenizer.chat_template != template


@pytest.mark.parametrize("tool", ["axolotl", "llamafactory", "trl"])
def test_a_thought_that_only_autoft_closes_is_told(tmp_path: Path, tool: str) -> None:
    plan, _ = planned(tmp_path, NO_SWITCH)
    assert "autoft closes at once (</think>): this tool leaves it open" in exports(plan, tool, tmp_path)[2]


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_said_where_nothing_was_switched(tmp_path: Path, tool: str) -> None:
    plan, _ = planned(tmp_path, TURNS + ASKS + "{% endif %}")
    text, row, notes = exports(plan, tool, tmp_path)
    assert "think" not in text + json.dumps(row) + notes
    assert "chat_template_kwargs" not in row
    assert "tokenizer.chat_template" not in text


@pytest.mark.parametrize("tool", TOOLS)
def test_data_that_no_tokenizer_read_are_said(tmp_path: Path, tool: str) -> None:
    plan = replace(a_plan(tmp_path, "lora", "pairs"), workload=None)
    assert "what thinking = auto makes of it is not written" in exports(plan, tool, tmp_path)[2]


@pytest.mark.parametrize("tool", TOOLS)
def test_answers_that_autoft_trains_otherwise_than_the_template_writes_them_are_counted(
    tmp_path: Path, tool: str
) -> None:
    plan, prepared = planned(tmp_path, TURNS.replace("<|im_end|>", "") + ASKS + "{% endif %}")
    assert plan.workload is not None
    assert plan.workload.ended_otherwise == len(prepared.train.examples) == 36
    assert (
        "36 answers are trained by autoft with a stop token that the chat template does not write"
        in (exports(plan, tool, tmp_path)[2])
    )


def test_what_was_switched_is_read_back_from_the_template(tmp_path: Path) -> None:
    for template, thinking, value, end in (
        (SWITCH, "auto", "enable_thinking=false", None),
        (SWITCH, "on", None, None),  # it thinks by default
        (NO_SWITCH, "auto", None, "</think>"),
        (TURNS + ASKS + "{% endif %}", "auto", None, None),
    ):
        _, prepared = planned(tmp_path, template, thinking=thinking)
        assert switched(prepared.tokenizer) == Switched(value, end)
