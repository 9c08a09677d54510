"""README.md and the pages in docs/ show what the commands print, and name what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ESTIMATES = (ROOT / "docs" / "how-estimates-work.md").read_text(encoding="utf-8")
PLANS = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")


def test_output_blocks_are_what_the_commands_print() -> None:
    words = [sys.executable, str(ROOT / "docs" / "readme_blocks.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_the_catalogue_is_what_the_profiles_say() -> None:
    words = [sys.executable, str(ROOT / "docs" / "catalogue.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_page_of_plans_is_what_the_planner_answers() -> None:
    """A small and a middling model; `make readme` makes it whole."""
    models = ("qwen2.5-0.5b-instruct", "llama-3.1-8b-instruct")
    words = [sys.executable, str(ROOT / "docs" / "plan_table.py"), "--check", *models]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_plans_are_those_that_an_expert_would_make() -> None:
    assert _plan("qwen2.5-0.5b-instruct", "rtx-4090")[:4] == ["lora", "bfloat16", "4", "none"]
    assert _plan("llama-3.1-8b-instruct", "rtx-3060")[:2] == ["qlora", "nf4, bfloat16"]
    assert _plan("llama-3.1-8b-instruct", "h100-80gb")[:2] == ["lora", "bfloat16"]
    assert _plan("qwen2.5-7b-instruct", "t4")[:2] == ["qlora", "nf4, float16"]
    assert _plan("llama-3.1-70b-instruct", "rtx-4090")[0] == "nothing fits"
    assert _plan("llama-3.1-70b-instruct", "rtx-a6000")[0] == "qlora"
    by_length = PLANS.split("## llama-3.1-8b-instruct on a rtx-4090 by length")[1]
    methods = re.findall(r"^\| [\d,]+ \| (\w+) ", by_length, re.MULTILINE)
    assert methods == sorted(methods)
    assert set(methods) == {"lora", "qlora"}


def _plan(model: str, card: str) -> list[str]:
    section = PLANS.split(f"## {model}\n")[1].split("## ")[0]
    line = next(line for line in section.splitlines() if line.startswith(f"| {card} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_no_block_is_empty() -> None:
    assert "```text\n```" not in README + ESTIMATES


def test_every_file_of_the_tree_is_there() -> None:
    tree = README.split("## What is where\n```\n")[1].split("```")[0]
    for line in tree.splitlines():
        folder, *words = line.split()
        assert (ROOT / folder).is_dir(), folder
        for name in re.findall(r"[\w/*]+\.(?:py|toml)", " ".join(words)):
            assert list((ROOT / folder).glob(name)), f"{folder}{name}"


def test_every_command_of_the_readme_is_known() -> None:
    from autoft.cli.main import COMMANDS

    assert set(re.findall(r"^\$ autoft (\w+)", README, re.MULTILINE)) <= set(COMMANDS)


def test_every_make_target_of_the_readme_and_contributing_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^    make ([a-z-]+)", named, re.MULTILINE)) <= targets
