"""The house: imports run one way, the packages listed are the packages there are, and the wheel holds them all."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PACKED = (".py", ".toml", ".typed", ".html", ".css", ".js", ".jsonl")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What each folder may import of autoft; the face may import all of it.
ALLOWED = {
    "profiles": {"profiles"},
    "trainer": {"profiles", "trainer"},
    "planner": {"profiles", "trainer", "planner"},
}
# The floors of a folder, from the ground up; "" is its files. A package imports only packages of lower floors.
FLOORS = {
    "planner": (
        "", "tracing", "kernels", "rehearsal", "memory", "timing", "estimator", "search", "history", "plan", "what_if",
        "explain", "export",
    ),
    "trainer": (
        "adapters", "objectives", "", "compat", "runtime", "storage", "sources", "optimizers", "model", "data",
        "distributed", "checks", "evaluation", "loop", "report", "doctor", "run", "export",
        "serving", "publish",
    ),
}  # fmt: skip
COMMON = {"errors", "hooks", "schema", "settings", "home", "units"}


def _imported(file: Path) -> set[str]:
    """Second parts of the autoft modules that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names |= {module.split(".")[1] for module in modules if module and module.startswith("autoft.")}
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_run_one_way(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        assert _imported(file) <= ALLOWED[folder] | COMMON, file


def modules() -> dict[str, Path]:
    """Every module of autoft with its file."""
    files = [file for folder in (*ALLOWED, "autoft/cli") for file in (ROOT / folder).rglob("*.py")]
    files += (ROOT / "autoft").glob("*.py")
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        path = parts if parts[0] == "autoft" else ("autoft", *parts)
        names[".".join(path).removesuffix(".__init__")] = file
    return names


def imported_modules(text: str, known: Collection[str]) -> set[str]:
    """Those of `known` that code imports when it runs, at its top or inside functions."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known)


def in_order(texts: dict[str, str]) -> list[str]:
    """The modules, each behind those that it imports. Raises: graphlib.CycleError where there is no such order."""
    graph = {name: imported_modules(text, texts) - {name} for name, text in texts.items()}
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_no_file_imports_what_imports_it() -> None:
    texts = {name: file.read_text(encoding="utf-8") for name, file in modules().items()}
    assert len(in_order(texts)) == len(texts) > 200


def climbing(folder: str, texts: dict[str, str]) -> list[str]:
    """Imports within a folder that lead to a higher floor, as "module imports module"."""
    files = {f"autoft.{folder}.{file.stem}" for file in (ROOT / folder).glob("*.py")}
    floor = {name: number for number, name in enumerate(FLOORS[folder])}

    def floor_of(module: str) -> int:
        return floor["" if module in files or module == f"autoft.{folder}" else module.split(".")[2]]

    inside = {name: text for name, text in texts.items() if name.startswith(f"autoft.{folder}.")}
    return [
        f"{name} imports {other}"
        for name, text in inside.items()
        for other in imported_modules(text, inside)
        if floor_of(other) > floor_of(name)
    ]


@pytest.mark.parametrize("folder", FLOORS)
def test_packages_import_downwards_only(folder: str) -> None:
    assert climbing(folder, {name: file.read_text(encoding="utf-8") for name, file in modules().items()}) == []


def test_an_import_of_a_higher_floor_is_found() -> None:
    texts = {"autoft.planner.plan.a": "", "autoft.planner.tracing.b": "def f():\n    from autoft.planner.plan import a"}
    assert climbing("planner", texts) == ["autoft.planner.tracing.b imports autoft.planner.plan.a"]


def test_a_circle_is_found() -> None:
    with pytest.raises(graphlib.CycleError):
        in_order({"autoft.a": "def f():\n    from autoft import b", "autoft.b": "import autoft.a"})
    assert in_order({"autoft.a": "from autoft import b", "autoft.b": "if TYPE_CHECKING:\n    import autoft.a"})


def test_every_package_on_disk_is_listed() -> None:
    found = {"autoft", "autoft.cli"}
    for folder in ALLOWED:
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("autoft", *init.parent.relative_to(ROOT).parts)))
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


@pytest.mark.parametrize("name", ALLOWED)
def test_the_symlinks_for_editors_are_relative(name: str) -> None:
    assert os.readlink(ROOT / "autoft" / name) == f"../{name}"  # noqa: PTH115 - the link's own text


@pytest.mark.slow
def test_the_wheel_holds_everything_and_works_elsewhere(tmp_path: Path) -> None:
    def run(*words: str, **settings: object) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    source = tmp_path / "source"
    run("git", "clone", "--quiet", str(ROOT), str(source))
    # what is not committed yet counts too
    run(
        "sh",
        "-c",
        f"git -C {ROOT} ls-files -z -co --exclude-standard | tar -C {ROOT} --null -T - -c | tar -C {source} -x",
    )
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source))
    wheel = next(tmp_path.glob("*.whl"))
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("autoft", *ALLOWED):
        for file in (source / folder).rglob("*"):
            if file.suffix in PACKED and not any(p.is_symlink() for p in file.parents):
                relative = file.relative_to(source)
                assert str(relative if folder == "autoft" else Path("autoft") / relative) in packed
    assert not [name for name in packed if name.split("/")[0] in ALLOWED]

    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import autoft.planner.plan.make as p; print(p.__file__)", cwd=tmp_path, env=env)
    assert where.startswith(str(site))
    assert "rtx-4090" in run(sys.executable, "-m", "autoft", "profiles", "gpus", cwd=tmp_path, env=env)


def test_the_files_that_run_first_are_there() -> None:
    names = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert [name for name in LONGEST if name not in names] == []
