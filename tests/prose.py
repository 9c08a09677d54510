"""Count, file by file, words that read as translated; tests/prose_baseline.json holds the counts that may only shrink.

    python tests/prose.py            shows the hits of files that exceed the baseline; exits with 1 if there are any
    python tests/prose.py --all      shows every hit
    python tests/prose.py --write    writes smaller counts to the baseline; never larger ones

Checks texts in the packages (docstrings aside), pages written by hand, and names that say nothing of what they hold.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASELINE = Path(__file__).with_name("prose_baseline.json")
PACKAGES = ("autoft", "planner", "trainer", "profiles")
BANNED = re.compile(
    r"\bso many\b|\bis no (?!longer\b|need\b|such\b)|\btimes the time\b|\banew\b|\bof which\b"
    r"|\b(?:take|takes|took|taken|taking) (?:it )?up\b(?! to\b)|\btells\b|\bnobody\b|\bruins?\b|\bbuys\b",
    re.IGNORECASE,
)
VAGUE_NAMES = {"found", "told", "said", "asked"}
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)

Hit = tuple[int, str]


def hits() -> dict[str, list[Hit]]:
    """Line and words of each hit, by file."""
    by_file: dict[str, list[Hit]] = {}
    for path in [*_modules(), *_pages()]:
        text = path.read_text(encoding="utf-8")
        lines = sorted(in_module(text) if path.suffix == ".py" else in_page(text))
        if lines:
            by_file[path.relative_to(ROOT).as_posix()] = lines
    return by_file


def in_page(text: str) -> Iterator[Hit]:
    """Banned words of a Markdown page, code aside."""
    prose = CODE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(prose.splitlines(), start=1):
        for match in BANNED.finditer(line):
            yield number, match[0].strip()


def in_module(text: str) -> Iterator[Hit]:
    """Banned words in a module's texts, and assignments to vague names."""
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE_NAMES:
            yield node.lineno, f"{node.id} = "
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            for match in BANNED.finditer(node.value):
                yield node.lineno, match[0].strip()


def baseline() -> dict[str, int]:
    """The counts that files may have."""
    counts: dict[str, int] = json.loads(BASELINE.read_text(encoding="utf-8"))
    return counts


def _modules() -> list[Path]:
    """Modules of the packages, once each: autoft/ has symlinks to the others."""
    paths = {path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    return sorted({path.resolve() for path in paths})


def _pages() -> list[Path]:
    """Pages written by hand: generated ones say that they are not to be edited. The changelog is history."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if "do not edit" not in page.read_text(encoding="utf-8")]


def main(words: list[str]) -> int:
    by_file, allowed = hits(), baseline()
    if words == ["--write"]:
        smaller = {name: min(len(by_file.get(name, [])), count) for name, count in allowed.items()}
        smaller = {name: count for name, count in smaller.items() if count}
        BASELINE.write_text(json.dumps(smaller, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    worse = {name: lines for name, lines in by_file.items() if len(lines) > allowed.get(name, 0)}
    for name, lines in (by_file if words == ["--all"] else worse).items():
        for number, what in lines:
            print(f"{name}:{number}: {what}")
    return int(bool(worse) and not words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
