"""The host as it is here, and on folders shaped like /proc and /sys."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from autoft.profiles.host import container_of, hub_cache, read_host, system_of, torch_build

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_figures_are_sane() -> None:
    host = read_host()
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert 0 < host.ram_available_bytes <= host.ram_total_bytes <= psutil.virtual_memory().total
    assert host.swap_total_bytes is not None
    assert host.swap_free_bytes is not None
    assert 0 <= host.swap_free_bytes <= host.swap_total_bytes
    assert host.cpu
    assert host.python.startswith(".".join(map(str, sys.version_info[:3])))
    assert host.versions["torch"] == importlib.metadata.version("torch")


def test_disk_is_read_at_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    host = read_host(tmp_path / "not" / "yet")
    assert host.disk_path == str(tmp_path)
    assert host.disk_free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_room_is_read_where_things_will_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf").mkdir()
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path / "home"))
    places = {disk.use: disk.path for disk in read_host(tmp_path / "out").disks}
    assert places == {"models": str(tmp_path / "hf"), "cache": str(tmp_path), "outputs": str(tmp_path)}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path("~/.cache/huggingface/hub").expanduser())),
    ],
)
def test_where_models_go(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub_cache()[0]) == expected


@ON_LINUX
def test_instruction_sets_of_x86_and_arm(tmp_path: Path) -> None:
    write(tmp_path / "x86", "proc/cpuinfo", "model name\t: A CPU\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16\n")
    x86 = read_host(root=tmp_path / "x86")
    assert (x86.cpu, x86.instruction_sets, x86.bf16) == ("A CPU", ("AVX2", "AVX-512", "AMX", "AMX BF16"), True)
    write(tmp_path / "arm", "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve bf16\n")
    arm = read_host(root=tmp_path / "arm")
    assert (arm.instruction_sets, arm.bf16) == (("NEON", "SVE", "BF16"), True)
    assert read_host(root=tmp_path / "nothing").instruction_sets is None


@ON_LINUX
def test_wsl_is_told_from_linux(tmp_path: Path) -> None:
    write(tmp_path, "proc/version", "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@x) (gcc) #1 SMP")
    assert system_of(tmp_path) == "wsl2"
    write(tmp_path, "proc/version", "Linux version 6.8.0-45-generic (buildd@x) (gcc) #45-Ubuntu SMP")
    assert system_of(tmp_path) == "linux"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "engine", "podman"),
        ("proc/1/cgroup", "0::/kubepods.slice/pod1", "kubernetes"),
        ("proc/self/cgroup", "0::/system.slice/docker-abc.scope", "docker"),
        ("proc/self/cgroup", "0::/user.slice/user-1000.slice", None),
    ],
)
def test_containers_are_known_by_their_marks(tmp_path: Path, name: str, text: str, expected: str | None) -> None:
    write(tmp_path, name, text)
    assert container_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "CUDA 12.8"),
        ("cuda = None\nhip: Optional[str] = '6.4.43483-a187df25c'\n", "ROCm 6.4"),
        ("cuda: Optional[str] = None\nxpu: Optional[str] = '20250101'\n", "XPU 20250101"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", "cpu"),
    ],
)
def test_what_pytorch_was_built_for(tmp_path: Path, lines: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "torch/version.py", f"__version__ = '2.13.0'\n{lines}")
    write(tmp_path, "torch-2.13.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch_build() == expected


def test_the_build_is_what_torch_itself_says() -> None:
    import torch

    built = torch_build()
    assert built is not None
    assert built.startswith("CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "cpu")
