"""Every setting is declared once, in its field, and all that speaks of settings takes it from there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from autoft.planner.search.synonyms import SETTINGS, TYPED
from autoft.settings import Setting, settings_of
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe, applies

ROOT = Path(__file__).parent.parent
LIST = 5  # names of settings in one literal are a list of settings
# What these name of settings is no field's to say
OTHERS = {
    "autoft/cli/show_plan.py": "the order of reasons on the screen",
    "trainer/adapters/lora.py": "the fields that LoRA has",
    "planner/export/axolotl.py": "what axolotl has a key for",
    "planner/export/llamafactory.py": "what LLaMA-Factory has a key for",
    "planner/export/trl.py": "what TRL has a key for",
    "planner/export/unsloth.py": "what unsloth has a key for",
}


def test_every_field_declares_itself() -> None:
    for record in (Recipe, Job):
        assert list(settings_of(record)) == list(record.__dataclass_fields__)
    for field in SETTINGS.values():
        assert field.setting.help[-1] != "."
        assert field.setting.follows is None or field.setting.follows in SETTINGS


def test_a_field_that_declares_nothing_is_found() -> None:
    @dataclass
    class Careless:
        rank: Annotated[int, Setting("size", group="Adapter")] = 1
        alpha: float = 2.0

    Careless.__annotations__["rank"] = Annotated[int, Setting("size", group="Adapter")]
    Careless.__annotations__["alpha"] = float
    with pytest.raises(TypeError, match=re.escape("Careless.alpha declares 0 Settings, not one")):
        settings_of(Careless)


def test_no_name_stands_for_two_settings() -> None:
    names = [name for field in SETTINGS.values() for name in field.setting.elsewhere.split()]
    assert len(names) == len(set(names))
    assert not set(names) & set(SETTINGS)


def test_the_fields_that_mean_nothing_in_full_fine_tuning() -> None:
    assert not applies("rank", "full", "lora")
    assert not applies("kbit_upcast", "full", "lora")
    assert applies("micro_batch", "full", "lora")
    assert applies("autocast", "full", "lora")
    assert applies("rank", "lora", "lora")
    assert not applies("rank", "qlora", "ia3")
    assert applies("target_modules", "qlora", "ia3")


def lists_of_settings(text: str) -> list[int]:
    """Lines of the collections of text that name settings one by one."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        members = getattr(node, "elts", [])
        texts = [member.value for member in members if isinstance(member, ast.Constant)]
        names = [text for text in texts if text in SETTINGS]
        if len(names) >= LIST and len(names) == len(members):
            lines.append(node.lineno)
    return lines


def test_nowhere_else_are_settings_listed() -> None:
    assert lists_of_settings('A = ("rank", "alpha", "dropout", "packing", "seq_len")') == [1]
    for folder in ("planner", "trainer", "profiles", "autoft/cli"):
        for file in (ROOT / folder).rglob("*.py"):
            name = str(file.relative_to(ROOT))
            if name not in OTHERS:
                assert not lists_of_settings(file.read_text(encoding="utf-8")), name


def test_help_settings_shows_every_setting(autoft: Callable[..., Any]) -> None:
    done = autoft("plan", "--help-settings")
    assert done.code == 0
    assert {line.split()[0] for line in done.out.splitlines() if line.strip()} >= TYPED


def test_the_page_of_settings_is_what_the_fields_say() -> None:
    words = [sys.executable, str(ROOT / "docs" / "settings_page.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
