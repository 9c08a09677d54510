"""The host on this machine, and on folders shaped like /proc and /sys."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from autoft.profiles.cgroup import MemoryLimit, cpu_quotas, memory_limits, swap_limits
from autoft.profiles.detect import detect
from autoft.profiles.host import container_of, read_host, system_of


def test_host_figures_are_sane() -> None:
    host = detect().host
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert 0 < host.ram_available_bytes <= host.ram_total_bytes <= psutil.virtual_memory().total
    assert host.cpu
    assert host.versions["nvidia-ml-py"] == importlib.metadata.version("nvidia-ml-py")
    assert host.python.startswith(".".join(map(str, sys.version_info[:3])))


def test_disk_is_read_at_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    host = detect(tmp_path / "not" / "yet").host
    assert host.disk_path == str(tmp_path)
    assert host.disk_free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_cgroup_2_counts_every_level_and_its_idle_cache_as_free(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job",
            "sys/fs/cgroup/slice/memory.max": "8000",
            "sys/fs/cgroup/slice/memory.current": "7500",
            "sys/fs/cgroup/slice/memory.stat": "anon 5000\ninactive_file 1500",
            "sys/fs/cgroup/slice/memory.swap.max": "500",
            "sys/fs/cgroup/slice/memory.swap.current": "100",
            "sys/fs/cgroup/slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/slice/job/memory.max": "max",
            "sys/fs/cgroup/slice/job/memory.current": "7000",
            "sys/fs/cgroup/slice/job/cpu.max": "max 100000",
        },
    )
    assert memory_limits(root) == [MemoryLimit(limit_bytes=8000, available_bytes=2000)]
    assert swap_limits(root) == [MemoryLimit(limit_bytes=500, available_bytes=400)]
    assert cpu_quotas(root) == [1.5]


def test_cgroup_1_in_a_container_where_only_the_top_is_mounted(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 200",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert memory_limits(root) == [MemoryLimit(limit_bytes=6000, available_bytes=5200)]
    assert cpu_quotas(root) == [2.0]


def test_no_cgroup_no_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"})
    assert (memory_limits(root), cpu_quotas(root)) == ([], [])


def test_wsl_is_a_linux_that_microsoft_built(tmp_path: Path) -> None:
    wsl = tree(tmp_path / "wsl", {"proc/version": "Linux version 5.15.90.1-microsoft-standard-WSL2 (gcc)"})
    plain = tree(tmp_path / "plain", {"proc/version": "Linux version 6.1.0 (gcc)"})
    if sys.platform.startswith("linux"):
        assert (system_of(wsl), system_of(plain)) == ("wsl2", "linux")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/pod1"}, "kubernetes"),
        ({"proc/self/cgroup": "0::/user.slice"}, None),
    ],
)
def test_containers(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    assert container_of(tree(tmp_path, files)) == expected


def test_instruction_sets_by_the_processors_flags(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": "model name\t: A processor\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16"})
    host = read_host(root=root)
    assert (host.cpu, host.instruction_sets, host.bf16) == (
        "A processor",
        ("AVX2", "AVX-512", "AMX", "AMX BF16"),
        True,
    )


def test_room_is_told_where_models_caches_and_outputs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    places = {disk.use: disk.path for disk in read_host(tmp_path).disks}
    assert places["models"] == str(tmp_path / "models")
    assert places["outputs"] == str(tmp_path)
