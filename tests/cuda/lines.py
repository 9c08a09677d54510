"""Which statements of the product that deal with a GPU have the tests run?"""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.card import COUNTED, ROOT

PACKAGES = ("autoft/cli", "planner", "profiles", "trainer")
EXCUSES = Path(__file__).with_name("unvisited.toml")
VARIABLE = "AUTOFT_LINES"  # of the folder where processes write what they run


@dataclass(frozen=True, slots=True)
class Line:
    """A statement that mentions a GPU. reason: why no test here runs it, where unvisited.toml gives one."""

    file: str
    number: int
    text: str
    reason: str | None = None


def report(folder: Path) -> tuple[int, list[Line]]:
    """(statements that mention a GPU, those of them that no process has run), from what is in `folder`."""
    record = folder / "ran"
    ran = set(record.read_text(encoding="utf-8").splitlines()) if record.exists() else set()
    every = list(_statements())
    excuses = tomllib.loads(EXCUSES.read_text(encoding="utf-8")).get("line", [])
    missed = []
    for file, number, text in every:
        if f"{ROOT / file}:{number}" not in ran:
            reasons = (each["why"] for each in excuses if _is_of(file, each["file"]) and each["has"] in text)
            reason = next(reasons, None)
            missed.append(Line(file, number, text[:160], reason))
    return len(every), missed


def _is_of(file: str, excused: str) -> bool:
    return file.startswith(excused) if excused.endswith("/") else file == excused


def _statements() -> Iterator[tuple[str, int, str]]:
    statements = runpy.run_path(str(COUNTED / "sitecustomize.py"))["statements"]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found = statements(path.read_text(encoding="utf-8"))
            numbered = sorted((statement.lineno, text) for _, statement, text in found)
            yield from ((path.relative_to(ROOT).as_posix(), number, text) for number, text in numbered)
