"""The fence: every private name of PyTorch and Hugging Face that autoft uses is in a table, and as the table says."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from autoft.hooks import Hook, Table, check, signature_of
from autoft.trainer import compat
from autoft.trainer.compat.tested import TESTED
from autoft.trainer.doctor import internals

ROOT = Path(__file__).parent.parent
FOLDERS = ("autoft", "profiles", "trainer", "planner")
LIBRARIES = tuple(compat.TABLES)
# Documented modules beside the libraries themselves; the others may change from release to release
DOCUMENTED = {
    "torch.autograd.graph", "torch.cuda", "torch.distributed", "torch.nn", "torch.nn.functional",
    "torch.nn.utils", "torch.optim", "torch.overrides", "torch.utils.data", "bitsandbytes.optim",
}  # fmt: skip
# Private by their looks alone
PUBLIC = {"_exit", "_replace"}  # of os, of a NamedTuple
BEGINNINGS = {"lora_A": "lora_", "lora_B": "lora_"}  # known by how they begin
READERS = ("getattr", "setattr", "hasattr", "delattr", "object", "attrgetter")
PRIVATE_OPERATION = re.compile(rf"^(?:aten|{'|'.join(LIBRARIES)})::(_?\w+)$")


def product_files() -> list[Path]:
    """All but the tables."""
    files = {file.resolve() for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    return sorted(file for file in files if file.parent.name != "compat")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC and name.strip("_") != ""


def known_names() -> set[str]:
    """Every part of a path that is in a table, and the attributes."""
    rows = compat.hooks()
    parts = {part for row in rows for part in re.split(r"[.:]", row.path)}
    return parts | {name for row in rows for name in row.attributes}


def is_known_import(module: str, name: str) -> bool:
    path = f"{module}:{name}"
    return any(row.path == path or row.path.startswith(f"{path}.") for row in compat.hooks())


def not_in_a_table(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of what a module takes from the libraries, is private or in a private place, and is no row."""
    tree, known = ast.parse(text), known_names()
    own = _own_names(tree)
    imported = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            for alias in node.names:
                listed = is_known_import(str(node.module), alias.name)
                private = is_private(alias.name) or "._" in str(node.module)
                if not listed and (private or not _is_documented(str(node.module))):
                    yield node.lineno, f"{node.module}:{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                inside = alias.name.split(".")[0] in LIBRARIES and not _is_documented(alias.name)
                if inside and not any(row.path.startswith(f"{alias.name}:") for row in compat.hooks()):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute):
            replaced = isinstance(node.ctx, ast.Store) and ast.unparse(node.value).split(".")[0] in imported
            if (replaced or (is_private(node.attr) and node.attr not in own)) and node.attr not in known:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in READERS:
            for word in node.args:
                value = word.value if isinstance(word, ast.Constant) else None
                if isinstance(value, str) and is_private(value) and value not in known | own:
                    yield node.lineno, value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            operation = PRIVATE_OPERATION.match(node.value)
            if operation and not any(name.startswith(operation[1]) for name in known):
                yield node.lineno, node.value


def _is_documented(module: str) -> bool:
    return module in DOCUMENTED or module in LIBRARIES


def _own_names(tree: ast.Module) -> set[str]:
    """What the module itself defines."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def _imported(tree: ast.Module) -> set[str]:
    """Names that stand for modules and classes of the libraries."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            taken = [alias for alias in node.names if alias.name.split(".")[0] in LIBRARIES]
            names |= {alias.asname or alias.name.split(".")[0] for alias in taken}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_no_file_takes_what_is_in_no_table() -> None:
    taken = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in product_files()
        for line, name in not_in_a_table(file.read_text(encoding="utf-8"))
    ]
    assert not taken, "add a row to trainer/compat, or use what is documented: " + ", ".join(taken)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tensor._version", "tensor._version"),
        ("import torch\ntorch._dynamo.reset()", "torch._dynamo"),
        ("from torch._inductor import config", "torch._inductor:config"),
        ("import torch._dynamo", "torch._dynamo"),
        ("from torch.fx import Graph", "torch.fx:Graph"),
        ("from transformers import masking_utils\nmasking_utils.create_causal_mask = None",
         "masking_utils.create_causal_mask"),
        ("from transformers.integrations.moe import batched_mm_experts_forward",
         "transformers.integrations.moe:batched_mm_experts_forward"),
        ("from peft.tuners import lora", "peft.tuners:lora"),
        ("import trl.models", "trl.models"),
        ("import bitsandbytes as bnb\nbnb.functional._shape", "bnb.functional._shape"),
        ("getattr(model, '_tp_plan', None)", "_tp_plan"),
        ("mock.patch.object(model, '_tp_plan')", "_tp_plan"),
        ("FORMULAS = {'aten::_fused_sdp_choice': None}", "aten::_fused_sdp_choice"),
    ],
)  # fmt: skip
def test_a_planted_name_is_seen(text: str, name: str) -> None:
    assert [seen for _, seen in not_in_a_table(text)] == [name]


def test_own_and_documented_names_are_let_through() -> None:
    text = """
import os
import torch
from torch.nn import functional
from transformers import AutoConfig

class Own:
    def __init__(self):
        self._kept = torch.empty(1)

    def _help(self):
        return self._kept, os._exit, functional.pad

getattr(Own(), "_help")
"""
    assert not list(not_in_a_table(text))


def _overridden() -> Iterator[tuple[str, str]]:
    """File, and "module:Class.name" of the library's private method, for every one that a class of ours overrides."""
    for file in product_files():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = _imported(tree)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        ours = [each for each in classes if {ast.unparse(base).split(".")[0] for base in each.bases} & imported]
        relative = file.relative_to(ROOT).with_suffix("")
        path = ".".join(relative.parts if relative.parts[0] == "autoft" else ("autoft", *relative.parts))
        for each in ours:
            made = getattr(importlib.import_module(path), each.name)
            for attribute in filter(is_private, _own_names(ast.Module(each.body, []))):
                for base in made.__mro__[1:]:
                    if base.__module__.split(".")[0] in LIBRARIES and attribute in vars(base):
                        yield f"{relative}.py", f"{base.__qualname__}.{attribute}"


def test_every_private_method_that_is_overridden_is_in_a_table() -> None:
    overridden = list(_overridden())
    assert len(overridden) >= 12  # of Trainer, SFTTrainer, Bnb4BitHfQuantizer and TorchDispatchMode
    assert not [name for _, name in overridden if name.rpartition(".")[2] not in known_names()]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_hook_is_as_the_table_says(library: str) -> None:
    assert internals.differences(library) == {library: []}


@pytest.mark.parametrize("row", compat.hooks(), ids=lambda row: row.path)
def test_every_row_says_where_it_is_used(row: Hook) -> None:
    module: ModuleType = importlib.import_module(f"autoft.trainer.compat.{row.library}")
    constants = [name for name, value in vars(module).items() if value is row]
    words = {*row.path.partition(":")[2].split("."), *constants}
    attributes = [BEGINNINGS.get(name, name) for name in row.attributes]
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in row.used_in}
    assert texts
    for file, text in texts.items():
        assert any(re.search(rf"\b{word}\b", text) for word in (*words, *attributes)), file
    for attribute in attributes:
        assert any(re.search(rf"\b{attribute}\b", text) for text in texts.values()), attribute
    assert row.why
    assert row.library in LIBRARIES


def row_of(table: Table, name: str) -> Hook:
    return next(row for row in table.hooks if row.name == name)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"path": "torch.autograd.graph:_engine_runs_backward"}, "autograd.graph._engine_runs_backward is gone"),
        ({"path": "torch.autograd.graphs:_engine_run_backward"}, "autograd.graphs._engine_run_backward is gone"),
        ({"signature": "(outputs)"},
         "autograd.graph._engine_run_backward has changed: (t_outputs, *args, **kwargs)"),
        ({"attributes": ("missing",)}, "autograd.graph._engine_run_backward has no missing any more"),
        ({"source": "0123456789abcdef"}, "autograd.graph._engine_run_backward has changed"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_so_is_one_line(change: dict[str, object], line: str) -> None:
    row = row_of(compat.TABLES["torch"], "_engine_run_backward")
    assert check([row], cuda=False) == []
    assert check([replace(row, **change)], cuda=False) == [line]


def test_what_only_builds_for_cuda_have_is_asked_of_them_alone() -> None:
    row = replace(row_of(compat.TABLES["torch"], "_cuda_getArchFlags"), path="torch._C:_of_no_build")
    assert check([row], cuda=False) == []
    assert check([row], cuda=True) == ["_C._of_no_build is gone"]


def test_a_name_is_replaced_for_the_time_of_a_block_even_if_it_fails() -> None:
    hook = row_of(compat.TABLES["torch"], "get_rng_state")
    original = hook.fetch()
    with suppress(KeyError), hook.replaced_by(len) as given:
        assert given is original
        assert hook.fetch() is len
        raise KeyError
    assert hook.fetch() is original


def test_a_signature_has_no_address_and_no_annotation() -> None:
    def function(a: int, *, b: object = object(), c: float = 0.5, d: tuple[int, ...] = ()) -> None:
        pass

    assert signature_of(function) == "(a, *, b=..., c=0.5, d=())"
    assert signature_of(3) == signature_of(object()) == ""


# What the doctor and the start of a command say


def test_the_doctor_counts_them() -> None:
    finding = internals.as_tested({"checked": 74, "differences": {"torch": [], "peft": []}}, TESTED)
    assert (finding.status, finding.found, finding.fix) == ("ok", "74 of 74 as tested", None)


def test_the_doctor_names_the_first_that_has_changed() -> None:
    differences = {"torch": [], "transformers": ["a.b has changed: (x)", "c is gone"], "peft": ["d" * 200]}
    finding = internals.as_tested({"checked": 74, "differences": differences}, {"transformers": "5.30.0", "peft": "1"})
    assert finding.status == "failed"
    assert finding.found == (
        f"71 of 74 as tested; transformers 5.30.0: a.b has changed: (x), and 1 more; peft 1: {'d' * 160}..."
    )
    tested = f"transformers=={TESTED['transformers']} peft=={TESTED['peft']}"
    assert finding.fix == f"install the tested version: pip install {tested}"


def test_with_the_tested_versions_a_command_looks_at_nothing(monkeypatch, capsys) -> None:
    from autoft import render
    from autoft.cli.internals import tell_of_changes

    monkeypatch.setattr("autoft.trainer.compat.tested.installed_version", lambda name: f"{TESTED[name]}+cu130")
    monkeypatch.setattr("autoft.trainer.doctor.workers.Workers.ask", None)
    tell_of_changes(render.console(stderr=True))
    assert capsys.readouterr().err == ""


def test_with_other_versions_a_command_looks_once_and_says_what_has_changed(monkeypatch, capsys, tmp_path) -> None:
    from autoft import render
    from autoft.cli.internals import tell_of_changes
    from autoft.trainer.doctor.workers import Workers

    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path))
    monkeypatch.setattr("autoft.trainer.compat.tested.installed_version", {**TESTED, "peft": "0.99.0"}.get)
    monkeypatch.setenv("COLUMNS", "300")
    tell_of_changes(render.console(stderr=True))  # the installed PEFT, in a process of its own
    assert capsys.readouterr().err == "Checking internals of peft 0.99.0, once\n"
    tell_of_changes(render.console(stderr=True))
    assert capsys.readouterr().err == ""

    monkeypatch.setattr("autoft.trainer.compat.tested.installed_version", {**TESTED, "trl": "2.0.0"}.get)
    answer = {"checked": 10, "differences": {"trl": ["SFTTrainer._send_telemetry is gone"]}}
    monkeypatch.setattr(Workers, "ask", lambda *_, **__: answer)
    for first in ("Checking internals of trl 2.0.0, once\n", ""):
        tell_of_changes(render.console(stderr=True))
        assert capsys.readouterr().err == (
            f"{first}Note: trl 2.0.0: SFTTrainer._send_telemetry is gone. Figures may be wrong. "
            f"To fix: install the tested version: pip install trl=={TESTED['trl']}\n"
        )


def test_what_could_not_be_looked_at_is_said_and_not_kept(monkeypatch, capsys, tmp_path) -> None:
    from autoft import render
    from autoft.cli.internals import tell_of_changes
    from autoft.trainer.doctor.workers import Unanswered, Workers

    def fail(*_: object, **__: object) -> None:
        raise Unanswered("no answer within 120 s")

    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("autoft.trainer.compat.tested.installed_version", {**TESTED, "torch": "9.0.0"}.get)
    monkeypatch.setattr(Workers, "ask", fail)
    for _ in range(2):
        tell_of_changes(render.console(stderr=True))
        assert "torch 9.0.0: its internals could not be checked: no answer within 120 s" in capsys.readouterr().err
