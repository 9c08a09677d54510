"""Which lines of the product that deal with a GPU have the tests run?"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.card import ROOT

PACKAGES = ("autoft/cli", "planner", "profiles", "trainer")
WORDS = re.compile(r"cuda|nccl|triton|paged|offload|fused|device", re.IGNORECASE)
EXCUSES = Path(__file__).with_name("unvisited.toml")


@dataclass(frozen=True, slots=True)
class Line:
    """A statement that mentions a GPU. reason: why no test here runs it, where unvisited.toml gives one."""

    file: str
    number: int
    text: str
    reason: str | None = None


def config(folder: Path) -> Path:
    """Write coverage's settings for this process and those that it starts; returns the file. folder: of its data."""
    path = folder / "coverage.ini"
    path.write_text(
        f"[run]\nsource_pkgs = autoft\nparallel = true\ndata_file = {folder / 'data'}\nsigterm = true\n"
        "disable_warnings = no-data-collected, module-not-imported, module-not-measured\n",
        encoding="utf-8",
    )
    return path


def report(folder: Path) -> tuple[int, list[Line]]:
    """(statements that mention a GPU, those of them that no process has run), from the data in `folder`."""
    from coverage import Coverage

    coverage = Coverage(data_file=str(folder / "combined"), config_file=str(folder / "coverage.ini"))
    coverage.combine([str(folder)], keep=True)
    data = coverage.get_data()
    ran: dict[str, set[int]] = {}
    for name in data.measured_files():
        ran.setdefault(_in_repository(name), set()).update(data.lines(name) or ())
    total, missed = 0, []
    excuses = tomllib.loads(EXCUSES.read_text(encoding="utf-8")).get("line", [])
    for file, path in _sources():
        _, statements, _, _, _ = coverage.analysis2(str(path))
        for number, text in _about_a_gpu(path, statements):
            total += 1
            if number not in ran.get(file, set()):
                reason = next((e["why"] for e in excuses if e["file"] == file and e["has"] in text), None)
                missed.append(Line(file, number, text, reason))
    return total, missed


def _sources() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path


def _about_a_gpu(path: Path, statements: list[int]) -> Iterator[tuple[int, str]]:
    """Statements whose lines, from the first to before the next statement, have one of the words outside a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for at, following in zip(statements, [*statements[1:], len(lines) + 1], strict=True):
        text = " ".join(line.split("  #")[0].strip() for line in lines[at - 1 : following - 1])
        if WORDS.search(text.split('"""')[0]) and not text.startswith(("import ", "from ", "def ", "class ", "@")):
            yield at, text.split('"""')[0].strip()[:160]


def _in_repository(name: str) -> str:
    """Of a file that coverage has seen, through the links in autoft/ or not."""
    path = Path(name).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else name
