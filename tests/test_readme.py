"""README.md and the pages in docs/ show what the commands print, and name what is there; their links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
@pytest.mark.parametrize(
    ("model", "cards"),
    [
        ("qwen2.5-0.5b-instruct", ("t4", "rtx-4090")),
        ("llama-3.1-8b-instruct", ("rtx-3060", "rtx-5090", "a100-80gb")),
    ],
)
def test_the_page_of_plans_is_what_the_planner_answers(
    monkeypatch: pytest.MonkeyPatch, model: str, cards: tuple[str, ...]
) -> None:
    """A small and a middling model, each generation of cards once; `make readme` makes the page whole."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = importlib.import_module("plan_table")
    assert set(cards) <= set(page.CARDS)
    monkeypatch.setattr(page, "CARDS", cards)
    title, _, head, rule, *lines = page.section(model).splitlines()
    written = PLANS.split(f"{title}\n")[1].split("## ")[0].splitlines()
    assert written[1:3] == [head, rule]
    assert len(lines) == len(cards)
    assert [line for line in lines if line not in written] == []


def test_the_plans_are_those_that_an_expert_would_make() -> None:
    assert _plan("qwen2.5-0.5b-instruct", "rtx-4090")[:4] == ["lora", "bfloat16", "4", "none"]
    assert _plan("llama-3.1-8b-instruct", "rtx-3060")[:2] == ["qlora", "nf4, bfloat16"]
    assert _plan("llama-3.1-8b-instruct", "h100-80gb")[:2] == ["lora", "bfloat16"]
    assert _plan("qwen2.5-7b-instruct", "t4")[:2] == ["qlora", "nf4, float16"]
    streamed = _plan("llama-3.1-70b-instruct", "rtx-4090")
    assert streamed[:4] == ["qlora", "nf4, bfloat16", "4", "every layer"]
    assert re.fullmatch(r"\d+ layers, 4\d\.\d GiB", streamed[7])
    resident = _plan("llama-3.1-70b-instruct", "rtx-a6000")
    assert (resident[0], resident[7]) == ("qlora", "")
    by_length = PLANS.split("## llama-3.1-8b-instruct on a rtx-4090 by length")[1]
    methods = re.findall(r"^\| [\d,]+ \| (\w+) ", by_length, re.MULTILINE)
    assert methods == sorted(methods)
    assert set(methods) == {"lora", "qlora"}


def _plan(model: str, card: str) -> list[str]:
    section = PLANS.split(f"## {model}\n")[1].split("## ")[0]
    line = next(line for line in section.splitlines() if line.startswith(f"| {card} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_no_block_is_empty() -> None:
    assert "```text\n```" not in "".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_the_readme_is_short_and_has_both_commands_on_its_first_screen() -> None:
    lines = README.splitlines()
    assert len(lines) <= 130
    assert {line.split("#")[0].strip() for line in lines[:10]} >= {"make run", "make test"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert not anchor or anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them of plain titles."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_of_docs_is_in_the_index_and_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.parent != ROOT]
    assert [name for name in pages if f": {name}\n" not in site] == []
    assert [name for name in pages if "/" not in name and name != "index.md" and f"({name})" not in index] == []


def test_the_program_prints_every_message_of_troubleshooting() -> None:
    """`...` stands for what is filled in. Literals that Python joins are joined here."""
    folders = ("autoft", "planner", "trainer", "profiles")
    sources = (file.read_text(encoding="utf-8") for folder in folders for file in (ROOT / folder).rglob("*.py"))
    code = re.sub(r"\"\s*\n\s*f?\"", "", "\n".join(sources))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) >= 30
    for message in messages:
        pieces = [piece.strip() for piece in message.split("...")]
        pattern = r"[^\n]*?".join(re.escape(piece) for piece in pieces if piece)
        assert re.search(pattern, code), message


@pytest.mark.slow
def test_the_commands_of_the_quickstart_work_as_written(
    autoft: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check, plan, run, chat and eval, with the page's own data and a tiny model in the place of MODEL."""
    section = QUICKSTART.split("## Your data\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(section.split("```json\n")[1].split("```")[0], encoding="utf-8")
    lines = re.findall(r"^\$ autoft (.+)", section, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["data", "plan", "run", "chat", "eval"]
    for line in lines:
        words = [str(tiny_model) if word == "MODEL" else word for word in shlex.split(line, comments=True)]
        done = autoft(*words)
        assert done.code == 0, done.err


def test_every_file_of_the_tree_is_there() -> None:
    tree = CONTRIBUTING.split("## What is where\n```\n")[1].split("```")[0]
    top = ROOT
    for line in tree.splitlines():
        if not line.startswith(" "):
            top = ROOT / line.split()[0]
            assert top.is_dir(), line
        for folder in re.findall(r"([\w/]+)/(?=[\s,;]|$)", line.removeprefix(top.name)):
            assert (top / folder).is_dir() or (ROOT / folder).is_dir(), folder
        for name in re.findall(r"[\w/*]+\.(?:py|toml)", line):
            assert list(top.rglob(name)), f"{top.name}: {name}"


def test_every_command_of_the_pages_is_known() -> None:
    from autoft.cli.main import COMMANDS

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"^\$ autoft ([\w-]+)", text, re.MULTILINE)) <= set(COMMANDS)


def test_every_make_target_of_the_readme_and_contributing_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^    make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE)) <= targets


def test_the_changelog_has_the_version_and_a_section_for_what_comes_next() -> None:
    from autoft import __version__

    titles = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[:2] == ["Unreleased", __version__]
