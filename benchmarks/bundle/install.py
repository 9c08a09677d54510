"""Make a virtual environment beside this file that has autoft, from the wheels here, and PyTorch, from this Python.

    python3 install.py                                 with the Python that has PyTorch
    venv/bin/python benchmarks/gpu_evidence.py

Nothing is downloaded, and nothing of this Python is changed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "venv"
PYTHONS = ((3, 11), (3, 12))
# Least versions: torch has CUDA 13 wheels from 2.11 on this list; pyarrow as datasets 5.2 asks for it
THERE = {"torch": (2, 11), "numpy": (1, 26), "pandas": (2, 1), "pyarrow": (24,)}


def main() -> None:
    if sys.version_info[:2] not in PYTHONS or platform.machine() != "x86_64" or sys.platform != "linux":
        sys.exit("the wheels here are for Python 3.11 and 3.12 on Linux, x86-64")
    missing = [why for why in map(why_not, THERE) if why]
    if missing:
        sys.exit(f"{sys.executable}: {'; '.join(missing)}. Take the Python that has them, or install them there")
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"{sys.executable} has no pip: python3 -m ensurepip, or the system's package python3-pip")
    venv.EnvBuilder(system_site_packages=True, clear=True, with_pip=False).create(FOLDER)
    # An environment made from an environment sees the system's packages and not those of its parent
    lines = [f"import site; site.addsitedir({folder!r})" for folder in sorted({place(name) for name in THERE})]
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(FOLDER), "platbase": str(FOLDER)}))
    (site_packages / "packages-of-parent.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    python = FOLDER / "bin" / "python"
    words = [str(python), "-m", "pip"] if _has_pip(python) else [sys.executable, "-m", "pip", "--python", str(python)]
    words += ["install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", "--no-compile"]
    words += ["--disable-pip-version-check", f"--find-links={HERE / 'wheels'}"]
    words += [f"--requirement={HERE / 'requirements.txt'}"]
    # neither a configuration nor variables of pip are to add an index or a constraint
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(words, env={**environ, "PIP_CONFIG_FILE": os.devnull}, check=False)
    if done.returncode:
        sys.exit(f"pip ended with exit {done.returncode}")
    subprocess.run([str(python), "-P", "-m", "autoft", "--version"], check=True)
    print(f"Ready: {python.relative_to(HERE)} benchmarks/gpu_evidence.py")


def why_not(name: str) -> str | None:
    """What is wrong with a package that must be there."""
    if importlib.util.find_spec(name) is None:
        return f"no {name}"
    version = importlib.metadata.version(name)
    parts = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    least = THERE[name]
    return None if parts >= least else f"{name} {version}, and {'.'.join(map(str, least))} or later is needed"


def place(name: str) -> str:
    """The folder that has a package."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).resolve().parents[1])


def _has_pip(python: Path) -> bool:
    return subprocess.run([str(python), "-c", "import pip"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
