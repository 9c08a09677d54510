"""detect() on a stand-in driver (fake_nvml.c), through the real command, and on folders shaped like /proc and /sys."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoft.errors import OptionError
from autoft.profiles.detect import MemoryLimit, cpu_quotas, detect, gpu_from_profile, memory_limits, visible_indices
from autoft.profiles.hardware import Hardware

MIB = 2**20
BIG, OLD = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce GTX 1080 Ti"


def probe(driver: Any, scenario: str, **env: str) -> dict[str, Any]:
    run = driver.autoft(scenario, "probe", "--json", **env)
    assert (run.returncode, run.stderr) == (0, "")
    found: dict[str, Any] = json.loads(run.stdout)
    Hardware.from_dict(found)
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [gpu["name"] for gpu in found["gpus"]]


def test_a_laptop_gpu_with_a_process_on_it(driver: Any) -> None:
    found = probe(driver, "laptop")
    assert found["gpus"] == [
        {
            "name": "NVIDIA GeForce RTX 3060 Laptop GPU",
            "origin": "nvml",
            "total_bytes": 6144 * MIB,
            "free_bytes": 5000 * MIB,
            "index": 0,
            "uuid": "GPU-aaaa1111-0000-0000-0000-000000000001",
            "compute_capability": [8, 6],
            "multiprocessors": None,
            "bf16": True,
            "half_flops_per_s": None,
            "float32_flops_per_s": None,
            "memory_bytes_per_s": None,
            "tdp_w": None,
            "pcie": "gen4 x16",
            "processes": [
                {"pid": os.getpid(), "name": psutil.Process().name(), "used_bytes": 900 * MIB},
                {"pid": 999999999, "name": None, "used_bytes": None},
            ],
            "profile": None,
        }
    ]
    assert (found["driver_version"], found["cuda_version"], found["no_gpu_reason"]) == ("550.54.14", "12.4", None)


def test_two_different_gpus(driver: Any) -> None:
    found = probe(driver, "two")
    assert [(g["name"], g["index"], g["bf16"], g["pcie"], g["processes"]) for g in found["gpus"]] == [
        (BIG, 0, True, "gen1 x8", []),
        (OLD, 1, False, "gen3 x16", []),
    ]


def test_a_gpu_that_answers_nothing_but_its_memory(driver: Any) -> None:
    found = probe(driver, "mute")
    (gpu,) = found["gpus"]
    assert gpu["name"] == "unnamed NVIDIA GPU"
    assert gpu["total_bytes"] == 6144 * MIB
    assert (gpu["uuid"], gpu["compute_capability"], gpu["bf16"], gpu["pcie"], gpu["processes"]) == (
        None,
        None,
        False,
        None,
        [],
    )
    assert (found["driver_version"], found["cuda_version"]) == (None, None)


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("none", "the driver reports no GPU"),
        ("broken", "the NVIDIA driver did not answer: Driver Not Loaded"),
        ("blind", "the driver does not tell the memory of GPU 0 (NVIDIA GeForce RTX 3060 Laptop GPU)"),
    ],
)
def test_why_there_is_no_gpu(driver: Any, scenario: str, reason: str) -> None:
    found = probe(driver, scenario)
    assert (found["gpus"], found["no_gpu_reason"]) == ([], reason)


def test_no_driver(driver: Any, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    found = probe(driver, "laptop", LD_LIBRARY_PATH=str(tmp_path))
    assert (found["gpus"], found["no_gpu_reason"]) == ([], "no NVIDIA driver found")


@pytest.mark.parametrize("scenario", ["laptop", "none", "blind", "mute"])
def test_the_driver_is_shut_down_once(driver: Any, scenario: str) -> None:
    probe(driver, scenario)
    assert driver.log.read_text() == "shutdown\n"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("1,0", [OLD, BIG]),
        ("1", [OLD]),
        ("GPU-cccc3333-0000-0000-0000-000000000003", [OLD]),
        ("GPU-c,GPU-aabb", [OLD, BIG]),
        ("1,7,0", [OLD]),
    ],
)
def test_visible_devices_choose_and_order(driver: Any, setting: str, expected: list[str]) -> None:
    assert names(probe(driver, "two", CUDA_VISIBLE_DEVICES=setting)) == expected


@pytest.mark.parametrize("setting", ["", "-1", "7", "GPU-ffff"])
def test_visible_devices_can_hide_all(driver: Any, setting: str) -> None:
    found = probe(driver, "two", CUDA_VISIBLE_DEVICES=setting)
    assert found["gpus"] == []
    assert found["no_gpu_reason"] == f"CUDA_VISIBLE_DEVICES={setting!r} leaves none of the 2 GPUs here visible"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, [0, 1, 2]),
        (" 2 , 0 ", [2, 0]),
        ("0,-1,2", [0]),
        ("0,0", []),  # twice the same: none, as torch.cuda reads it
        ("GPU-a", []),  # the beginning of two UUIDs
        ("GPU-ab,1", []),  # the same by UUID and by index
        ("GPU-ab,GPU-aa", [1, 0]),
        ("1gpu", [1]),
        ("x,0", []),
    ],
)
def test_visible_indices(setting: str | None, expected: list[int]) -> None:
    uuids = ["GPU-aa", "GPU-ab", None]
    assert visible_indices(setting, uuids) == expected


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("scenario", ["laptop", "two", "mute", "broken"])
def test_probe_fits_the_terminal(driver: Any, scenario: str, width: int) -> None:
    run = driver.autoft(scenario, "probe", COLUMNS=str(width))
    assert run.returncode == 0
    assert max(map(len, run.stdout.splitlines())) <= width


def test_probe_says_what_matters(driver: Any) -> None:
    out = driver.autoft("laptop", "probe").stdout
    for part in (
        "GPU 0: NVIDIA GeForce RTX 3060 Laptop GPU",
        "4.9 GiB free of 6.0 GiB",
        f"(pid {os.getpid()}): 900 MiB",
        "unnamed process (pid 999999999): size unknown",
        "capability 8.6, bfloat16: yes",
        "gen4 x16 now",
        "550.54.14",
        "up to 12.4",
    ):
        assert part in out


def test_host_figures_are_sane() -> None:
    host = detect().host
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert 0 < host.ram_available_bytes <= host.ram_total_bytes <= psutil.virtual_memory().total
    assert host.cpu
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
            "sys/fs/cgroup/slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/slice/job/memory.max": "max",
            "sys/fs/cgroup/slice/job/memory.current": "7000",
            "sys/fs/cgroup/slice/job/cpu.max": "max 100000",
        },
    )
    assert memory_limits(root) == [MemoryLimit(limit_bytes=8000, available_bytes=2000)]
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


def test_a_catalogue_card_as_if_it_were_here() -> None:
    gpu = gpu_from_profile("RTX 4090")
    assert (gpu.name, gpu.origin, gpu.profile) == ("NVIDIA GeForce RTX 4090", "profile", "rtx-4090")
    assert gpu.total_bytes == gpu.free_bytes == 24564 * MIB
    assert (gpu.compute_capability, gpu.bf16, gpu.half_flops_per_s) == ((8, 9), True, 165.2e12)
    assert not gpu_from_profile("t4").bf16
    with pytest.raises(OptionError):
        gpu_from_profile("voodoo")
