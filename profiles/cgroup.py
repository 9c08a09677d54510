"""What does a container leave of the machine? Limits on memory and CPU of this process's cgroups, versions 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoft.profiles.files import number, text


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimit:
    """One cgroup's limit on memory; available is what is left of it, its idle file cache counted as free."""

    limit_bytes: int
    available_bytes: int


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Every memory limit that binds this process: its own cgroup's and those above. root: where /proc and /sys are."""
    names = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    limits = []
    for controller, limit_file, usage_file, cache_key in names:
        for folder in _folders(root, controller):
            limit, usage = number(folder / limit_file), number(folder / usage_file)
            if limit is not None:
                # the kernel drops idle file cache before it refuses memory
                cache = _stat(folder / "memory.stat", cache_key)
                limits.append(MemoryLimit(limit_bytes=limit, available_bytes=limit - (usage or 0) + cache))
    return limits


def swap_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Every limit on swap. Version 1 limits only memory and swap together: it is left out."""
    limits = []
    for folder in _folders(root, ""):
        limit, usage = number(folder / "memory.swap.max"), number(folder / "memory.swap.current")
        if limit is not None:
            limits.append(MemoryLimit(limit_bytes=limit, available_bytes=limit - (usage or 0)))
    return limits


def cpu_quotas(root: Path = Path("/")) -> list[float]:
    """Every CPU quota that binds this process, in cores."""
    quotas = []
    for folder in _folders(root, ""):
        quota, _, period = text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _folders(root, "cpu"):
        old_quota, old_period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
        if old_quota and old_period:
            quotas.append(old_quota / old_period)
    return quotas


def _folders(root: Path, controller: str) -> list[Path]:
    """This process's cgroup folder of a version 1 controller ("" for version 2), and all above it.

    In a container the path in /proc is often the host's, of which only the top is mounted: missing ones are harmless.
    """
    top = root / "sys/fs/cgroup" / controller
    for line in text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            own = top / path.strip().lstrip("/")
            return [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
    return [top]


def _stat(path: Path, key: str) -> int:
    for line in text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0
