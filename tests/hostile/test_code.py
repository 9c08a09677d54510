"""No code of a model's folder is ever run: said at each place that opens one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OPENS = ("from_pretrained", "from_config")
# PEFT's own, which opens weights and knows no code
WITHOUT = ("PeftModel",)


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each call that opens a model, a tokenizer or a configuration, and where it is."""
    for folder in ("autoft", "planner", "profiles", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OPENS:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.func)}", node


def test_each_place_that_opens_a_model_says_that_no_code_of_it_is_run() -> None:
    found = dict(calls())
    assert len(found) > 10
    for where, call in found.items():
        said = {word.arg: ast.unparse(word.value) for word in call.keywords}
        expected = None if any(name in where for name in WITHOUT) else "False"
        assert said.get("trust_remote_code") == expected, where


def test_nothing_is_ever_unpickled() -> None:
    for folder in ("autoft", "planner", "profiles", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal"}, path
            loads = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
            assert "torch.load" not in loads, path
