"""Limits of containers, on folders shaped like /proc and /sys."""

from __future__ import annotations

from pathlib import Path

from autoft.profiles.cgroup import MemoryLimit, cpu_quotas, memory_limits, swap_limits


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
            "sys/fs/cgroup/slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/slice/memory.swap.max": "4000",
            "sys/fs/cgroup/slice/memory.swap.current": "1000",
            "sys/fs/cgroup/slice/job/memory.max": "max",
            "sys/fs/cgroup/slice/job/memory.current": "7000",
            "sys/fs/cgroup/slice/job/cpu.max": "max 100000",
        },
    )
    assert memory_limits(root) == [MemoryLimit(limit_bytes=8000, available_bytes=2000)]
    assert swap_limits(root) == [MemoryLimit(limit_bytes=4000, available_bytes=3000)]
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
