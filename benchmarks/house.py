"""How large is the house? Files, lines, functions: of this checkout, and of commits beside it.

    python benchmarks/house.py [COMMIT ...]

Counts the product alone: autoft, planner, trainer and profiles. A line of code has a token that is neither comment
nor docstring. Writes benchmarks/results/house.json.
"""

from __future__ import annotations

import ast
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from pathlib import Path
from typing import Any

from common import write_results

ROOT = Path(__file__).parent.parent
FOLDERS = ("autoft", "planner", "trainer", "profiles")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def main() -> None:
    houses = {}
    for commit in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(folder, filter="data")
            houses[commit] = measures(Path(folder))
    houses["here"] = measures(ROOT)
    width = max(len(name) for name in houses["here"])
    print(f"{'':{width}}", *(f"{commit:>12}" for commit in houses))
    for name in houses["here"]:
        print(f"{name:{width}}", *(f"{house[name]:>12,}" for house in houses.values()))
    write_results("house", houses)


def measures(root: Path) -> dict[str, Any]:
    """By name: numbers of one checkout."""
    files = sorted({file.resolve() for folder in FOLDERS for file in (root / folder).rglob("*.py")})
    texts = [file.read_text(encoding="utf-8") for file in files]
    trees = [ast.parse(text) for text in texts]
    lines = [len(code_lines(text, tree)) for text, tree in zip(texts, trees, strict=True)]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, DEFINITIONS)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    nodes = sum(1 for tree in trees for _ in ast.walk(tree))
    return {
        "files": len(files),
        "folders": len({file.parent for file in files}),
        "most files in a folder": max(sum(file.parent == each for file in files) for each in {f.parent for f in files}),
        "lines": sum(text.count("\n") for text in texts),
        "lines of code": sum(lines),
        "lines of code a file, median": round(statistics.median(lines)),
        "lines of code a file, 95 %": round(statistics.quantiles(lines, n=20)[-1]),
        "lines a function, median": round(statistics.median(lengths)),
        "lines a function, 95 %": round(statistics.quantiles(lengths, n=20)[-1]),
        "nodes a line of code": round(nodes / sum(lines), 2),
        "base names that stand twice": len({f.name for f in files if sum(f.name == other.name for other in files) > 1})
        - 1,  # __init__.py
    }


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *DEFINITIONS)) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        line
        for token in tokens
        if token.type not in SILENT and token.string
        for line in range(token.start[0], token.end[0] + 1)
    } - docstrings


if __name__ == "__main__":
    main()
