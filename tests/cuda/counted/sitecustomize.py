"""Record which statements about a GPU a process runs: with this folder on PYTHONPATH and AUTOFT_LINES naming a folder.

Each such statement of autoft gets a call before it when its module is imported, which appends FILE:LINE to the folder's
`ran` the first time. That costs next to nothing, and holds for forks, for kill -9 and for os._exit.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import marshal
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

WORDS = re.compile(r"cuda|nccl|triton|paged|offload|(?<!re)(?<!con)fused|\bdevice\b", re.IGNORECASE)
CALL = "__autoft_ran__"
SKIPPED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Global, ast.Nonlocal)


def statements(source: str) -> Iterator[tuple[list[ast.stmt], ast.stmt, str]]:
    """(the block, the statement, its text) of each that mentions a GPU; of one with a block of its own, its head."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            for statement in block if isinstance(block, list) else ():
                if isinstance(statement, SKIPPED) or _is_text(statement):
                    continue
                text = " ".join(line.split("  #")[0].strip() for line in lines[statement.lineno - 1 : _end(statement)])
                if WORDS.search(text):
                    yield block, statement, text


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _end(statement: ast.stmt) -> int:
    """Its last line, or that of its head."""
    body = getattr(statement, "body", None)
    return max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno or statement.lineno


def counted(source: str, file: str) -> CodeType:
    """The code of a module that records what it runs. file: as it is to be recorded."""
    tree = ast.parse(source)
    # the same walk over the same text: blocks of this tree, by line
    wanted = {(statement.lineno, statement.col_offset) for _, statement, _ in statements(source)}
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if not isinstance(block, list):
                continue
            for statement in [each for each in block if isinstance(each, ast.stmt)]:
                if (statement.lineno, statement.col_offset) in wanted and not isinstance(statement, SKIPPED):
                    words: list[ast.expr] = [ast.Constant(f"{file}:{statement.lineno}")]
                    call = ast.Expr(ast.Call(ast.Name(CALL, ast.Load()), words, []))
                    block.insert(block.index(statement), ast.copy_location(call, statement))
    return compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True)


class Loader(importlib.machinery.SourceFileLoader):
    """Of autoft's modules. Their code is kept in the folder, not in __pycache__."""

    def get_code(self, fullname: str) -> CodeType | None:
        kept = FOLDER / f"{fullname}.{Path(self.path).stat().st_mtime_ns}.code"
        if kept.exists():
            return marshal.loads(kept.read_bytes())
        source = Path(self.path).read_text(encoding="utf-8")
        code = counted(source, str(Path(self.path).resolve()))
        aside = kept.with_name(f"{kept.name}.{os.getpid()}")
        aside.write_bytes(marshal.dumps(code))
        aside.replace(kept)
        return code


class Finder:
    """Finds autoft's modules as the others do, and has Loader load them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "autoft":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if type(spec.loader) is importlib.machinery.SourceFileLoader:
                    spec.loader = Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


def install() -> None:
    import builtins

    seen: set[str] = set()
    file = os.open(FOLDER / "ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def ran(place: str) -> None:
        if place not in seen:
            seen.add(place)
            os.write(file, f"{place}\n".encode())

    setattr(builtins, CALL, ran)
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]


def _the_next() -> None:
    """Run the sitecustomize.py that comes after this one on the path."""
    here = Path(__file__).resolve().parent
    for folder in sys.path[[Path(each).resolve() for each in sys.path].index(here) + 1 :]:
        path = Path(folder) / "sitecustomize.py"
        if path.exists():
            namespace = {"__name__": "sitecustomize", "__file__": str(path)}
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
            return


if __name__ == "sitecustomize":
    if os.environ.get("AUTOFT_LINES"):
        FOLDER = Path(os.environ["AUTOFT_LINES"])
        install()
    _the_next()
