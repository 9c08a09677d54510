"""`--table FILE` writes what was tried here, and what autoft answered, as a page (`make hostile`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hostile.answers import ANSWERS

PLACE = re.compile(r"/\S*?/pytest-\d+/(?:popen-gw\d+/)?[^/\s]+/")
HEAD = """# What was done to break autoft, and its answer

Made by `make hostile` from tests/hostile: do not edit. {passed} of {tried} attempts gave what is expected of them: one
line that says what is wrong and a way on, the exit code for it, and nothing lost or half-written; or a run that holds.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write the page of docs/hostile.md there")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--table") is not None:
        config.pluginmanager.register(_Page(config.getoption("--table")))


class _Page:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, list[tuple[str, str, bool]]] = {}
        self.heads: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            module = item.getparent(pytest.Module)
            assert module is not None
            self.heads[item.nodeid.partition("::")[0]] = (module.obj.__doc__ or "").strip().splitlines()[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            file, _, name = report.nodeid.partition("::")
            tried = name.removeprefix("test_").replace("_", " ").replace("[", ": ").removesuffix("]")
            self.rows.setdefault(file, []).append((tried, ANSWERS.get(report.nodeid, ""), report.passed))

    def pytest_sessionfinish(self) -> None:
        tried = [row for rows in self.rows.values() for row in rows]
        lines = [HEAD.format(passed=sum(passed for *_, passed in tried), tried=len(tried))]
        for file, rows in self.rows.items():
            lines += [f"## {self.heads[file]}", "", "| tried | answer |", "|---|---|"]
            for name, answer, passed in rows:
                told = PLACE.sub("", answer) or "holds"
                lines.append(f"| {_cell(name)} | {_cell(told) if passed else '**FAILED**'} |")
            lines.append("")
        self.path.write_text("\n".join(lines), encoding="utf-8")


def _cell(text: str) -> str:
    shown = text if len(text) <= 180 else f"{text[:177]}..."
    printable = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in shown)
    return printable.replace("|", "\\|").replace("<", "&lt;")
