"""A stand-in NVIDIA driver, compiled from fake_nvml.c, under the real `autoft` in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


@dataclass(frozen=True)
class FakeDriver:
    """folder: where libnvidia-ml.so.1 is."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def environment(self, scenario: str, **env: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "FAKE_", "COLUMNS"))}
        own = {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": scenario, "FAKE_NVML_LOG": str(self.log)}
        return {**clean, **own, **env}

    def autoft(self, scenario: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "autoft", *args],
            env=self.environment(scenario, **env),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def compiled(folder: Path, *flags: str) -> FakeDriver:
    compiler = shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the stand-in NVIDIA driver needs gcc on Linux")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", folder / "libnvidia-ml.so.1", SOURCE],
        check=True,
        timeout=60,
    )
    return FakeDriver(folder)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    """One that lacks what came later than R470."""
    return compiled(tmp_path_factory.mktemp("old"), "-DOLD_DRIVER")
