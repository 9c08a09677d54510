"""A folder to carry to a machine with a GPU: autoft, its benchmarks and the wheels they need, without PyTorch.

    python benchmarks/bundle/build_bundle.py build/gpu-bundle

Wheels of the versions in constraints.txt, for Linux on x86-64 and each of PYTHONS; those of THERE stay out, with all
that only they need. bitsandbytes goes without its libraries for anything but CUDA 13 and the CPU: 7 MB in place of 43.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MOST_BYTES = 64 * 2**20
PYTHONS = ("3.11", "3.12")
# What the machine has already; install.py has the same
THERE = ("torch", "numpy", "pandas", "pyarrow")
GLIBC = (5, 12, 17, 24, 27, 28, 31, 34)  # 2.x: pip takes the platforms that are named and no older ones
KEPT_LIBRARIES = re.compile(r"bitsandbytes/libbitsandbytes_(cuda13\d|cpu)\.so")
COPIED = ("*.py", "gpu_cases.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is replaced")
    folder = parser.parse_args().folder
    if folder.exists():
        shutil.rmtree(folder)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in pins(needed("autoft"))), encoding="utf-8")
    for python in PYTHONS:
        _download(requirements, python, wheels)
    trim(next(wheels.glob("bitsandbytes-*.whl")))
    _build_autoft(wheels)
    with requirements.open("a", encoding="utf-8") as file:
        file.write("autoft\n")
    (folder / "benchmarks").mkdir()
    for pattern in COPIED:
        for path in sorted(HERE.parent.glob(pattern)):
            shutil.copyfile(path, folder / "benchmarks" / path.name)
    for name in ("install.py", "README.md"):
        shutil.copyfile(HERE / name, folder / name)
    print(f"{folder}: {check_size(folder) / 2**20:.1f} MiB of {MOST_BYTES / 2**20:.0f}")


def needed(name: str) -> set[str]:
    """All that a package needs to run, as the metadata installed here tells, without THERE and what only they need."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for text in importlib.metadata.requires(todo.pop()) or ():
            requirement = Requirement(text)
            other = str(canonicalize_name(requirement.name))
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            if other not in found and other not in THERE:
                found.add(other)
                todo.append(other)
    return found


def pins(names: set[str]) -> list[str]:
    """NAME==VERSION, from constraints.txt. Exits where it lacks one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    known = {str(canonicalize_name(line.split("==")[0])): line for line in lines if "==" in line}
    missing = sorted(names - set(known))
    if missing:
        sys.exit(f"constraints.txt has no version of {', '.join(missing)}")
    return [known[name] for name in sorted(names)]


def trim(wheel: Path) -> None:
    """Leave out the libraries of other platforms, in the files and in their list; the name gets a build tag."""
    name, version, tags = wheel.name.split("-", 2)
    trimmed = wheel.with_name(f"{name}-{version}-1cuda13-{tags}")
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(trimmed, "w", zipfile.ZIP_DEFLATED) as after:
        for item in before.infolist():
            content = before.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if _is_kept(line.split(",")[0])).encode()
            if _is_kept(item.filename):
                after.writestr(item, content)
    wheel.unlink()


def check_size(folder: Path) -> int:
    """Bytes in all. Exits where they are too many."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
        told = ", ".join(f"{path.name} {sizes[path] / 2**20:.1f}" for path in largest)
        sys.exit(f"{folder}: {total / 2**20:.1f} MiB, more than {MOST_BYTES / 2**20:.0f}; the largest are {told}")
    return total


def _is_kept(name: str) -> bool:
    return not name.startswith("bitsandbytes/libbitsandbytes_") or KEPT_LIBRARIES.fullmatch(name) is not None


def _download(requirements: Path, python: str, wheels: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += [f"--platform=manylinux{old}_x86_64" for old in (1, 2010, 2014)]
    _pip(
        "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp",
        *platforms, f"--dest={wheels}", f"--requirement={requirements}",
    )  # fmt: skip


def _build_autoft(wheels: Path) -> None:
    """From a copy: setuptools leaves its own folders where it builds."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "autoft"
        copy.mkdir()
        for name in ("autoft", "planner", "profiles", "trainer"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, copy / name)
        _pip("wheel", "--quiet", "--no-deps", f"--wheel-dir={wheels}", str(copy))


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip {words[0]}: {done.stderr.strip()[-1000:]}")


if __name__ == "__main__":
    main()
