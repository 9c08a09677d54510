"""List every error that the product raises, what and fix, in tests/data/errors.txt: to be read in one go, as users do.

python tests/error_texts.py            shows the list
python tests/error_texts.py --write    writes the file that tests/test_prose.py compares with
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from autoft import errors

ROOT = Path(__file__).parent.parent
LIST = ROOT / "tests" / "data" / "errors.txt"
PACKAGES = ("autoft", "planner", "trainer", "profiles")
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}


def error_texts() -> str:
    """By module, in the order of the code: class, what, and fix after an arrow. Values are source code in braces."""
    parts = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        lines = list(lines_of(path.read_text(encoding="utf-8")))
        if lines:
            parts.append("\n".join([path.relative_to(ROOT).as_posix(), *lines, ""]))
    return "\n".join(parts)


def lines_of(module: str) -> Iterator[str]:
    """Lines of one module."""
    calls = [node for node in ast.walk(ast.parse(module)) if isinstance(node, ast.Call) and _name(node) in CLASSES]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if not call.args:
            continue
        yield f"  {_name(call)}: {_text(call.args[0])}"
        yield from (f"    -> {_text(keyword.value)}" for keyword in call.keywords if keyword.arg == "fix")


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _text(node: ast.expr) -> str:
    """A string as it is; of an f-string and of anything else the source, in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{{{_text(node.body)} | {_text(node.orelse)}}}"
    return "{" + ast.unparse(node) + "}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        LIST.write_text(error_texts(), encoding="utf-8")
    else:
        print(error_texts())
