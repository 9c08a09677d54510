"""detect() on a stand-in driver (fake_nvml.c), through the real command, and on folders shaped like /proc and /sys."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from autoft.errors import OptionError
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Hardware

MIB = 2**20
LAPTOP = "GPU 0 (NVIDIA GeForce RTX 3060 Laptop GPU)"
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
    own = os.getpid()
    processes = f"c 999999999 -1;g {own} 300;b {own} 900"
    found = probe(driver, "laptop", FAKE_NVML_PROCESSES=processes)
    (gpu,) = found["gpus"]
    assert {key: gpu[key] for key in ("name", "origin", "index", "uuid", "compute_capability", "bf16", "pcie")} == {
        "name": "NVIDIA GeForce RTX 3060 Laptop GPU",
        "origin": "nvml",
        "index": 0,
        "uuid": "GPU-aaaa1111-0000-0000-0000-000000000001",
        "compute_capability": [8, 6],
        "bf16": True,
        "pcie": "gen4 x16",
    }
    assert [gpu[f"{part}_bytes"] for part in ("total", "free", "used")] == [6144 * MIB, 5000 * MIB, 1144 * MIB]
    me = psutil.Process()
    assert gpu["processes"] == [
        {
            "pid": own,
            "name": me.name(),
            "user": me.username(),
            "used_bytes": 900 * MIB,
            "kind": "both",
            "desktop": False,
        },
        {"pid": 999999999, "name": None, "user": None, "used_bytes": None, "kind": "compute", "desktop": False},
    ]
    assert gpu["features"] == {
        "architecture": "Ampere",
        "bf16": "native",
        "fp8": False,
        "flash_attention_2": True,
        "bitsandbytes_4bit": True,
        "bitsandbytes_int8": True,
    }
    status = gpu["status"]
    assert (status["power_w"], status["power_limit_w"], status["temperature_c"]) == (35.25, 115.0, 61)
    assert (status["sm_clock_mhz"], status["sm_clock_max_mhz"], status["memory_clock_max_mhz"]) == (1425, 2100, 7001)
    assert status["throttle"] == ["power limit", "heat (software)"]
    assert (status["display_attached"], status["display_active"], status["persistence"]) == (True, True, False)
    assert (status["ecc"], status["mig"], status["nvlink_active"]) == (None, None, None)
    assert gpu["unknown"] == dict.fromkeys(("ecc", "mig", "nvlink_active"), "Not Supported")
    assert (found["driver_version"], found["cuda_version"], found["no_gpu_reason"]) == ("550.54.14", "12.4", None)


def test_the_desktop_on_a_laptop_is_one_holder(driver: Any, tmp_path: Path) -> None:
    """Two processes called like parts of a desktop, which they are by being on the list of those that draw."""
    sleepers = []
    try:
        for name in ("gnome-shell", "firefox"):
            (tmp_path / name).symlink_to(shutil.which("sleep") or "/bin/sleep")
            sleepers.append(subprocess.Popen([tmp_path / name, "60"]))
        shell, browser = (process.pid for process in sleepers)
        env = {"FAKE_NVML_PROCESSES": f"g {shell} 250;g {browser} 150;c {os.getpid()} 500"}
        (gpu,) = probe(driver, "laptop", **env)["gpus"]
        assert gpu["desktop_bytes"] == 400 * MIB
        assert {process["name"] for process in gpu["processes"] if process["desktop"]} == {"gnome-shell", "firefox"}
        out = driver.autoft("laptop", "probe", **env).stdout
        assert "the desktop: 400 MiB (gnome-shell, firefox)" in out
        assert "the driver: 244 MiB" in out
    finally:
        for process in sleepers:
            process.kill()
            process.wait()


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
        ("blind", f"the driver does not tell the memory of {LAPTOP}: Not Supported"),
        ("lost", f"the driver does not tell the memory of {LAPTOP}: GPU is lost"),
        ("empty", f"the driver does not tell the memory of {LAPTOP}: it says that it has 0 bytes"),
        ("forbidden", "the driver does not tell the memory of GPU 0: Insufficient Permissions"),
        ("crash", "the NVIDIA driver's library crashed (exit code -11, asked for its library to start)"),
        ("bare", "GPU 0 in MIG mode without an instance: nvidia-smi mig -cgi makes one"),
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


def test_a_library_that_hangs_is_not_waited_for(driver: Any) -> None:
    found = probe(driver, "hang", AUTOFT_DRIVER_TIMEOUT_S="0.5")
    assert found["no_gpu_reason"] == (
        "the NVIDIA driver did not answer within 0.5 s (asked for its library to start); "
        "AUTOFT_DRIVER_TIMEOUT_S waits longer"
    )


def test_a_question_that_hangs_costs_what_came_before_nothing(driver: Any) -> None:
    found = probe(driver, "stuck", AUTOFT_DRIVER_TIMEOUT_S="0.5")
    (gpu,) = found["gpus"]
    assert (gpu["name"], gpu["total_bytes"]) == ("NVIDIA GeForce RTX 3060 Laptop GPU", 6144 * MIB)
    assert gpu["status"]["power_w"] is None
    assert gpu["unknown"]["temperature_c"] == "the driver stopped answering before"
    assert any("asked for the power of GPU 0" in note for note in found["notes"])


def test_a_timeout_that_is_none(driver: Any) -> None:
    run = driver.autoft("laptop", "probe", AUTOFT_DRIVER_TIMEOUT_S="soon")
    assert (run.returncode, run.stderr) == (
        2,
        "Error: AUTOFT_DRIVER_TIMEOUT_S='soon' is no time to wait\nTo fix: give seconds between 0 and 3600\n",
    )


def test_an_old_driver_without_the_newer_questions(old_driver: Any) -> None:
    (gpu,) = probe(old_driver, "laptop", FAKE_NVML_PROCESSES=f"c {os.getpid()} 100")["gpus"]
    assert [process["used_bytes"] for process in gpu["processes"]] == [100 * MIB]
    assert gpu["status"]["throttle"] == ["power limit", "heat (software)"]


def test_names_that_are_no_text_and_codes_that_nobody_knows(driver: Any) -> None:
    (gpu,) = probe(driver, "garbage")["gpus"]
    assert gpu["name"] == "unnamed NVIDIA GPU"
    assert gpu["unknown"]["name"] == "the driver's text is not UTF-8"
    assert gpu["unknown"]["power_w"] == "NVML error 777"


def test_mig_instances_as_cuda_shows_them(driver: Any) -> None:
    """One to a process before driver 570; since, the first of each GPU instance beside whole GPUs."""
    found = probe(driver, "mig")
    assert names(found) == ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"]
    (gpu,) = found["gpus"]
    assert (gpu["total_bytes"], gpu["multiprocessors"], gpu["compute_capability"]) == (4864 * MIB, 14, [8, 0])
    assert [(part["gpu_instance"], part["visible"]) for part in gpu["status"]["mig_instances"]] == [
        (7, True),
        (5, False),
        (5, False),
    ]
    newer = names(probe(driver, "mig", FAKE_NVML_DRIVER="570.10"))
    assert newer == ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A100-SXM4-40GB MIG 1c.2g.10gb", OLD]
    chosen = probe(driver, "mig", CUDA_VISIBLE_DEVICES="MIG-33333333-0000-0000-0000-000000000003")
    assert [gpu["uuid"] for gpu in chosen["gpus"]] == ["MIG-33333333-0000-0000-0000-000000000003"]


def test_cuda_numbers_the_fastest_first_but_in_bus_order_when_told(driver: Any) -> None:
    assert names(probe(driver, "mixed")) == [BIG, OLD]
    assert names(probe(driver, "mixed", CUDA_DEVICE_ORDER="PCI_BUS_ID")) == [OLD, BIG]
    guessed = probe(driver, "mixed", CUDA_VISIBLE_DEVICES="0")
    assert names(guessed) == [BIG]
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in guessed["notes"])


def test_nvlink(driver: Any) -> None:
    first, second = probe(driver, "linked")["gpus"]
    assert (first["status"]["nvlink_active"], first["status"]["nvlink_peers"]) == (3, ["GPU 1", "NVSwitch"])
    assert second["status"]["nvlink_peers"] == ["GPU 0", "NVSwitch"]


def test_a_gpu_without_memory_of_its_own_has_the_hosts(driver: Any) -> None:
    found = probe(driver, "spark")
    (gpu,) = found["gpus"]
    assert gpu["unified_memory"]
    assert gpu["total_bytes"] == found["host"]["ram_total_bytes"]
    assert gpu["unknown"]["used_bytes"] == "the GPU shares the host's memory, of which NVML tells no part"
    assert any("shares the host's memory" in note for note in found["notes"])


def test_the_stand_in_lays_structures_out_as_the_binding_does(driver: Any) -> None:
    told = (ctypes.c_size_t * 10).in_dll(ctypes.CDLL(str(driver.folder / "libnvidia-ml.so.1")), "fake_layouts")
    process, attributes = pynvml.c_nvmlProcessInfo_v3_t, pynvml.c_nvmlDeviceAttributes
    assert list(told) == [
        *(ctypes.sizeof(pynvml.c_nvmlMemory_t), pynvml.c_nvmlMemory_t.used.offset),
        *(ctypes.sizeof(process), process.usedGpuMemory.offset, process.computeInstanceId.offset),
        *(ctypes.sizeof(pynvml.nvmlPciInfo_t), pynvml.nvmlPciInfo_t.busId.offset),
        ctypes.sizeof(pynvml.c_nvmlUtilization_t),
        *(ctypes.sizeof(attributes), attributes.memorySizeMB.offset),
    ]


@pytest.mark.parametrize("scenario", ["laptop", "garbage", "none"])
def test_a_locale_without_utf_8(driver: Any, scenario: str) -> None:
    run = driver.autoft(scenario, "probe", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (run.returncode, run.stderr) == (0, "")
    assert "Traceback" not in run.stdout


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("scenario", ["laptop", "mig", "mute", "broken", "linked"])
def test_probe_fits_the_terminal(driver: Any, scenario: str, width: int) -> None:
    run = driver.autoft(scenario, "probe", COLUMNS=str(width))
    assert run.returncode == 0
    assert max(map(len, run.stdout.splitlines())) <= width


def test_probe_says_what_matters(driver: Any) -> None:
    out = driver.autoft("laptop", "probe", FAKE_NVML_PROCESSES=f"c {os.getpid()} 900;c 999999999 -1").stdout
    for part in (
        "GPU 0: NVIDIA GeForce RTX 3060 Laptop GPU",
        "4.9 GiB free of 6.0 GiB",
        f"(pid {os.getpid()}, {psutil.Process().username()}): 900 MiB",
        "unnamed process (pid 999999999): size unknown",
        "capability 8.6 (Ampere): bfloat16 native, no FP8, FlashAttention-2",
        "SM 1425 of 2100 MHz",
        "35 of 115 W",
        "61 C, slows down at 97 C",
        "power limit, heat (software)",
        "gen4 x16 now, gen4 x16 at most",
        "a display attached and in use",
        "550.54.14",
        "up to 12.4",
    ):
        assert part in out


def test_a_catalogue_card_as_if_it_were_here() -> None:
    gpu = gpu_from_profile("RTX 4090")
    assert (gpu.name, gpu.origin, gpu.profile) == ("NVIDIA GeForce RTX 4090", "profile", "rtx-4090")
    assert gpu.total_bytes == gpu.free_bytes == 24564 * MIB
    assert (gpu.compute_capability, gpu.bf16, gpu.half_flops_per_s) == ((8, 9), True, 165.2e12)
    assert not gpu_from_profile("t4").bf16
    with pytest.raises(OptionError):
        gpu_from_profile("voodoo")


def test_watching_a_gpu(driver: Any) -> None:
    run = driver.autoft("laptop", "probe", "--watch", "--count", "1", "--json")
    (gpu,) = json.loads(run.stdout)["gpus"]
    assert (gpu["used_bytes"], gpu["power_w"], gpu["temperature_c"], gpu["busy_percent"]) == (1144 * MIB, 35.25, 61, 12)
    assert gpu["throttle"] == ["power limit", "heat (software)"]
    line = driver.autoft("laptop", "probe", "--watch", "--count", "1").stdout
    assert "GPU 0" in line
    assert "1.1 GiB" in line


def test_a_gpu_that_is_lost_while_watched(driver: Any) -> None:
    run = driver.autoft("lost", "probe", "--watch", "--count", "1", "--json")
    sample = json.loads(run.stdout)
    assert (run.returncode, sample["gpus"]) == (0, [])
    assert "GPU is lost" in sample["no_gpu_reason"]


def test_a_plan_names_what_the_machine_leaves_out(driver: Any) -> None:
    """The machine's notes are in its plan, and no clock or temperature is."""
    run = driver.autoft("spark", "plan", "smollm2-135m", "--seq-len", "64", "--json")
    assert run.returncode == 0, run.stderr
    plan = json.loads(run.stdout)
    assert any("shares the host's memory" in note for note in plan["notes"])
    assert plan["hardware"]["gpus"][0]["status"] is None
