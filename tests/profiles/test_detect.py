"""detect() on a stand-in driver (fake_nvml.c), through the real command and the real binding."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from autoft.errors import OptionError
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.driver import Answers, Driver
from autoft.profiles.hardware import Hardware, Host
from autoft.profiles.nvidia import is_desktop, read_nvidia, throttle_words

MIB = 2**20
LAPTOP = "NVIDIA GeForce RTX 3060 Laptop GPU"
BIG, OLD, A100 = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce GTX 1080 Ti", "NVIDIA A100-SXM4-40GB"
PART = "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
HOST = Host(cpu="c", cores=2, ram_total_bytes=8, ram_available_bytes=5, disk_path="/", disk_free_bytes=1)


def probe(driver: Any, scenario: str, **env: str) -> dict[str, Any]:
    run = driver.autoft(scenario, "probe", "--json", **env)
    assert (run.returncode, run.stderr) == (0, "")
    found: dict[str, Any] = json.loads(run.stdout)
    Hardware.from_dict(found)
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [gpu["name"] for gpu in found["gpus"]]


@contextmanager
def process_called(name: str, folder: Path) -> Iterator[int]:
    """A real process that the system knows by that name."""
    (folder / name).symlink_to(Path(sys.executable).resolve())
    words = [str(folder / name), "-S", "-E", "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_laptop_gpu_with_a_desktop_on_it(driver: Any, tmp_path: Path) -> None:
    me = psutil.Process()
    with process_called("Xorg", tmp_path) as xorg, process_called("firefox", tmp_path) as firefox:
        listed = f"g {xorg} 300;g {firefox} 150;b {me.pid} 400;g 999999999 -1"
        found = probe(driver, "laptop", FAKE_NVML_PROCESSES=listed)
        shown = driver.autoft("laptop", "probe", FAKE_NVML_PROCESSES=listed).stdout
    (gpu,) = found["gpus"]
    user = me.username()
    assert gpu["processes"] == [
        {
            "pid": me.pid,
            "name": me.name(),
            "user": user,
            "used_bytes": 400 * MIB,
            "kind": "both",
            "desktop": False,
        },
        {"pid": xorg, "name": "Xorg", "user": user, "used_bytes": 300 * MIB, "kind": "graphics", "desktop": True},
        {"pid": firefox, "name": "firefox", "user": user, "used_bytes": 150 * MIB, "kind": "graphics", "desktop": True},
        {"pid": 999999999, "name": None, "user": None, "used_bytes": None, "kind": "graphics", "desktop": False},
    ]
    assert (gpu["desktop_bytes"], gpu["used_bytes"]) == (450 * MIB, 1144 * MIB)
    for part in (
        "GPU 0: NVIDIA GeForce RTX 3060 Laptop GPU",
        "4.9 GiB free of 6.0 GiB",
        "the desktop: 450 MiB (Xorg, firefox)",
        f"(pid {me.pid}, {user}): 400 MiB",
        "unnamed process (pid 999999999): size unknown",
        "the driver and those of unknown size: 294 MiB",
        "capability 8.6 (Ampere): bfloat16 native, no FP8, FlashAttention-2",
        "SM 1425 of 2100 MHz, memory 7001 of 7001 MHz",
        "35 of 115 W",
        "61 C, slows down at 97 C",
        "power limit, heat (software)",
        "gen4 x16 now",
        "persistence off, a display attached and in use",
        "Not Supported: nvlink active, ecc, mig",
        "550.54.14",
        "up to 12.4",
    ):
        assert part in shown


def test_all_that_the_driver_tells_of_a_gpu(driver: Any) -> None:
    found = probe(driver, "laptop")
    (gpu,) = found["gpus"]
    assert (found["driver_version"], found["cuda_version"], found["no_gpu_reason"]) == ("550.54.14", "12.4", None)
    assert {key: gpu[key] for key in ("name", "origin", "index", "uuid", "compute_capability", "bf16", "pcie")} == {
        "name": LAPTOP,
        "origin": "nvml",
        "index": 0,
        "uuid": "GPU-aaaa1111-0000-0000-0000-000000000001",
        "compute_capability": [8, 6],
        "bf16": True,
        "pcie": "gen4 x16",
    }
    assert (gpu["total_bytes"], gpu["free_bytes"], gpu["used_bytes"]) == (6144 * MIB, 5000 * MIB, 1144 * MIB)
    assert gpu["status"] == {
        "busy_percent": 12,
        "sm_clock_mhz": 1425,
        "sm_clock_max_mhz": 2100,
        "memory_clock_mhz": 7001,
        "memory_clock_max_mhz": 7001,
        "power_w": 35.25,
        "power_limit_w": 115.0,
        "temperature_c": 61,
        "slowdown_temperature_c": 97,
        "throttle": ["power limit", "heat (software)"],
        "ecc": None,
        "mig": None,
        "mig_instances": [],
        "pcie_generation": 4,
        "pcie_width": 16,
        "pcie_max_generation": 4,
        "pcie_max_width": 16,
        "pcie_bus_id": "00000000:01:00.0",
        "nvlink_active": None,
        "nvlink_peers": [],
        "display_attached": True,
        "display_active": True,
        "persistence": False,
        "driver_model": None,
    }
    assert gpu["unknown"] == dict.fromkeys(("ecc", "mig", "nvlink_active"), "Not Supported")


def test_two_different_gpus(driver: Any) -> None:
    found = probe(driver, "two")
    assert [(g["name"], g["index"], g["bf16"], g["pcie"], g["processes"]) for g in found["gpus"]] == [
        (BIG, 0, True, "gen1 x8", []),
        (OLD, 1, False, "gen3 x16", []),
    ]


def test_cuda_numbers_the_fastest_first(driver: Any) -> None:
    assert names(probe(driver, "mixed")) == [BIG, OLD]
    by_index = probe(driver, "mixed", CUDA_VISIBLE_DEVICES="0")
    assert [(gpu["name"], gpu["index"]) for gpu in by_index["gpus"]] == [(BIG, 1)]
    assert by_index["notes"][0].startswith("CUDA_VISIBLE_DEVICES='0' counts GPUs that differ")
    by_bus = probe(driver, "mixed", CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert names(by_bus) == [OLD]
    assert not [note for note in by_bus["notes"] if "counts GPUs" in note]


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


def test_mig_before_r570_is_one_instance_and_nothing_else(driver: Any) -> None:
    (gpu,) = probe(driver, "mig")["gpus"]
    assert (gpu["name"], gpu["index"], gpu["total_bytes"], gpu["multiprocessors"]) == (PART, 0, 4864 * MIB, 14)
    assert gpu["uuid"] == "MIG-11111111-0000-0000-0000-000000000001"
    assert (gpu["compute_capability"], gpu["status"]["ecc"], gpu["status"]["mig"]) == ([8, 0], True, True)
    assert [(i["gpu_instance"], i["compute_instance"], i["visible"]) for i in gpu["status"]["mig_instances"]] == [
        (7, 0, True),
        (5, 0, False),
        (5, 1, False),
    ]


def test_mig_since_r570_is_one_of_each_gpu_instance_beside_whole_gpus(driver: Any) -> None:
    found = probe(driver, "mig", FAKE_NVML_DRIVER="570.86.10")
    assert names(found) == [PART, "NVIDIA A100-SXM4-40GB MIG 1c.2g.10gb", OLD]


@pytest.mark.parametrize("setting", ["MIG-22222222", "MIG-GPU-dddd4444-0000-0000-0000-000000000004/5/0"])
def test_a_mig_instance_by_name(driver: Any, setting: str) -> None:
    (gpu,) = probe(driver, "mig", CUDA_VISIBLE_DEVICES=setting)["gpus"]
    assert (gpu["uuid"], gpu["total_bytes"]) == ("MIG-22222222-0000-0000-0000-000000000002", 9856 * MIB)


def test_mig_mode_without_an_instance(driver: Any) -> None:
    found = probe(driver, "bare")
    assert found["gpus"] == []
    assert found["no_gpu_reason"] == "GPU 0 in MIG mode without an instance: nvidia-smi mig -cgi makes one"


def test_nvlink_names_what_it_leads_to(driver: Any) -> None:
    first, second = probe(driver, "linked")["gpus"]
    assert (first["status"]["nvlink_active"], first["status"]["nvlink_peers"]) == (3, ["GPU 1", "NVSwitch"])
    assert second["status"]["nvlink_peers"] == ["GPU 0", "NVSwitch"]


def test_a_gpu_that_shares_the_hosts_memory(driver: Any) -> None:
    found = probe(driver, "spark")
    (gpu,) = found["gpus"]
    assert gpu["unified_memory"]
    assert gpu["total_bytes"] == found["host"]["ram_total_bytes"]
    assert gpu["free_bytes"] == found["host"]["ram_available_bytes"]
    assert gpu["unknown"]["used_bytes"] == "the GPU shares the host's memory, and NVML does not report it"
    assert found["notes"][0].startswith("NVIDIA GB10 shares the host's memory")


def test_a_gpu_that_answers_nothing_but_its_memory(driver: Any) -> None:
    found = probe(driver, "mute")
    (gpu,) = found["gpus"]
    assert (gpu["name"], gpu["total_bytes"]) == ("unnamed NVIDIA GPU", 6144 * MIB)
    assert (gpu["uuid"], gpu["compute_capability"], gpu["features"]) == (None, None, None)
    assert (gpu["bf16"], gpu["pcie"], gpu["processes"]) == (False, None, [])
    assert {value for key, value in gpu["status"].items() if key not in ("mig_instances", "nvlink_peers")} == {None}
    missing = {key for key in gpu["status"] if key not in ("mig_instances", "nvlink_peers", "driver_model")}
    assert set(gpu["unknown"]) >= missing | {"name", "uuid", "compute_capability", "compute_processes"}
    assert set(gpu["unknown"].values()) == {"Not Supported"}
    assert (found["driver_version"], found["cuda_version"]) == (None, None)


def test_text_that_is_no_utf8_and_codes_that_nobody_knows(driver: Any) -> None:
    (gpu,) = probe(driver, "garbage")["gpus"]
    assert (gpu["name"], gpu["total_bytes"]) == ("unnamed NVIDIA GPU", 6144 * MIB)
    assert gpu["unknown"]["name"] == "the driver's text is not UTF-8"
    assert gpu["unknown"]["power_w"] == "NVML error 777"


def test_a_driver_that_lacks_later_questions(old_driver: Any) -> None:
    me = psutil.Process()
    found = probe(old_driver, "laptop", FAKE_NVML_PROCESSES=f"c {me.pid} 900", FAKE_NVML_DRIVER="450.80.02")
    (gpu,) = found["gpus"]
    assert [(process["pid"], process["used_bytes"]) for process in gpu["processes"]] == [(me.pid, 900 * MIB)]
    assert gpu["status"]["throttle"] == ["power limit", "heat (software)"]
    assert names(probe(old_driver, "two")) == [BIG, OLD]


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("none", "the driver reports no GPU"),
        ("broken", "the NVIDIA driver did not answer: Driver Not Loaded"),
        ("blind", f"the driver does not tell the memory of GPU 0 ({LAPTOP}): Not Supported"),
        ("lost", f"the driver does not tell the memory of GPU 0 ({LAPTOP}): GPU is lost"),
        ("forbidden", "the driver does not tell the memory of GPU 0: Insufficient Permissions"),
        ("empty", f"the driver does not tell the memory of GPU 0 ({LAPTOP}): it says that it has 0 bytes"),
        ("crash", "the NVIDIA driver's library crashed (exit code -11, asked for its library to start)"),
    ],
)
def test_why_there_is_no_gpu(driver: Any, scenario: str, reason: str) -> None:
    found = probe(driver, scenario)
    assert (found["gpus"], found["no_gpu_reason"]) == ([], reason)


def test_no_driver(driver: Any, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    found = probe(driver, "laptop", LD_LIBRARY_PATH=str(tmp_path))
    assert found["gpus"] == []
    assert found["no_gpu_reason"].startswith("no NVIDIA driver found")


def test_a_driver_that_does_not_come_back(driver: Any) -> None:
    began = time.monotonic()
    found = probe(driver, "hang", AUTOFT_DRIVER_TIMEOUT_S="0.5")
    assert time.monotonic() - began < 10
    assert found["no_gpu_reason"] == (
        "the NVIDIA driver did not answer within 0.5 s (asked for its library to start); "
        "AUTOFT_DRIVER_TIMEOUT_S waits longer"
    )
    assert found["host"]["cores"] >= 1


def test_what_was_told_before_the_driver_hangs_counts(driver: Any) -> None:
    found = probe(driver, "stuck", AUTOFT_DRIVER_TIMEOUT_S="1")
    (gpu,) = found["gpus"]
    assert (gpu["name"], gpu["free_bytes"], gpu["bf16"]) == (LAPTOP, 5000 * MIB, True)
    assert found["notes"][0].startswith("the NVIDIA driver did not answer within 1 s (asked for the power of GPU 0)")
    assert gpu["unknown"]["temperature_c"] == "the driver stopped answering before"


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan", "1e9"])
def test_a_time_out_that_is_none(driver: Any, said: str) -> None:
    run = driver.autoft("laptop", "probe", AUTOFT_DRIVER_TIMEOUT_S=said)
    assert run.returncode == 2
    assert run.stderr == (
        f"Error: AUTOFT_DRIVER_TIMEOUT_S={said!r} is not a valid timeout\nTo fix: give seconds between 0 and 3600\n"
    )


def test_the_process_that_asks_is_gone_afterwards(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for scenario in ("laptop", "hang"):
        for name, value in driver.environment(scenario).items():
            monkeypatch.setenv(name, value)
        before = {child.pid for child in psutil.Process().children()}
        with Driver(timeout_s=2) as process:
            process.ask("all")
        assert {child.pid for child in psutil.Process().children()} <= before


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Driver() as process:
        answers = process.ask("all")
    found = read_nvidia(answers, HOST, {})
    assert found.reason == "no process could be started to ask the NVIDIA driver: No such file or directory"


@pytest.mark.parametrize("scenario", ["laptop", "none", "blind", "mute", "lost"])
def test_the_driver_is_shut_down_once(driver: Any, scenario: str) -> None:
    probe(driver, scenario)
    assert driver.log.read_text() == "shutdown\n"


def test_the_stand_ins_structures_are_the_bindings(driver: Any) -> None:
    library = ctypes.CDLL(str(driver.folder / "libnvidia-ml.so.1"))
    memory, process, pci = pynvml.c_nvmlMemory_t, pynvml.c_nvmlProcessInfo_v2_t, pynvml.nvmlPciInfo_t
    expected = [
        ctypes.sizeof(memory),
        memory.used.offset,
        ctypes.sizeof(process),
        process.usedGpuMemory.offset,
        process.computeInstanceId.offset,
        ctypes.sizeof(pci),
        pci.busId.offset,
        ctypes.sizeof(pynvml.c_nvmlUtilization_t),
        ctypes.sizeof(pynvml.c_nvmlDeviceAttributes),
        pynvml.c_nvmlDeviceAttributes.memorySizeMB.offset,
    ]
    assert list((ctypes.c_size_t * len(expected)).in_dll(library, "fake_layouts")) == expected
    assert ctypes.sizeof(pynvml.c_nvmlProcessInfo_v3_t) == ctypes.sizeof(process)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (None, None),
        (0, ()),
        (0x1, ("idle",)),
        (0x8 | 0x40, ("hardware slowdown", "heat (hardware)")),
        (0x4 | 0x8000, ("power limit", "unknown reason 0x8000")),
    ],
)
def test_throttle_reasons_in_words(bits: int | None, words: tuple[str, ...] | None) -> None:
    assert throttle_words(bits) == words


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Xorg", True), ("dwm.exe", True), ("gnome-shell", True), ("python3", False), ("blender", False), (None, False)],
)
def test_what_is_a_desktop(name: str | None, expected: bool) -> None:
    assert is_desktop(name) is expected


def jetson(root: Path) -> Path:
    folder = root / "proc/device-tree"
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    (folder / "compatible").write_bytes(b"nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0")
    return root


def no_library() -> Answers:
    return Answers(reasons={"": {"library": "NVML Shared Library Not Found"}})


def test_a_jetson_without_nvml_is_known_by_its_device_tree(tmp_path: Path) -> None:
    (gpu,) = read_nvidia(no_library(), HOST, {}, jetson(tmp_path)).gpus
    assert (gpu.name, gpu.origin, gpu.compute_capability) == ("NVIDIA Jetson AGX Orin Developer Kit", "system", (8, 7))
    assert (gpu.unified_memory, gpu.total_bytes, gpu.free_bytes, gpu.bf16) == (True, 8, 5, True)
    hidden = read_nvidia(no_library(), HOST, {"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path)
    assert (hidden.gpus, hidden.reason) == ((), "CUDA_VISIBLE_DEVICES='-1' leaves none of the one GPU here visible")


def test_a_gpu_on_the_bus_without_a_driver(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("device", "0x2684"), ("class", "0x030000")):
        (device / name).write_text(f"{text}\n")
    assert read_nvidia(no_library(), HOST, {}, tmp_path).reason == (
        "no NVIDIA driver found, though an NVIDIA GPU is on the bus (0000:01:00.0, device 0x2684): install it"
    )


def test_a_container_without_its_hosts_gpus(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14\n")
    assert "docker run --gpus all" in read_nvidia(no_library(), HOST, {}, tmp_path).reason


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("scenario", ["laptop", "two", "mig", "linked", "spark", "mute", "broken", "lost"])
def test_probe_fits_the_terminal(driver: Any, scenario: str, width: int) -> None:
    run = driver.autoft(scenario, "probe", COLUMNS=str(width), FAKE_NVML_PROCESSES="g 999999999 -1;c 999999998 12")
    assert run.returncode == 0
    assert max(map(len, run.stdout.splitlines())) <= width


def test_a_gpu_that_the_installed_pytorch_cannot_reach(driver: Any) -> None:
    found = probe(driver, "laptop")
    told = [note for note in found["notes"] if note.startswith("the PyTorch installed here is built for the CPU")]
    assert bool(told) == (found["host"]["torch_build"] == "cpu")


def test_a_gpu_that_is_gone_between_plan_and_run_is_one_line(
    driver: Any, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.toml", tmp_path / "out"
    planned = driver.autoft("laptop", "plan", str(tiny_model), "--data", str(data_file), "-o", str(file))
    assert planned.returncode == 0, planned.stderr
    assert f"on {LAPTOP} (6.0 GiB)" in " ".join(planned.stdout.split())
    run = driver.autoft("lost", "run", str(file), "-o", str(out), "--json")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-2:] == [
        f"Error: the plan is for {LAPTOP} (6.0 GiB), and there is no GPU here: the driver does not tell the memory of "
        f"GPU 0 ({LAPTOP}): GPU is lost",
        "To fix: run it there, or plan with --gpu cpu",
    ]
    assert not out.exists()


def test_a_catalogue_card_as_if_it_were_here() -> None:
    gpu = gpu_from_profile("RTX 4090")
    assert (gpu.name, gpu.origin, gpu.profile) == ("NVIDIA GeForce RTX 4090", "profile", "rtx-4090")
    assert gpu.total_bytes == gpu.free_bytes == 24564 * MIB
    assert (gpu.compute_capability, gpu.bf16, gpu.half_flops_per_s) == ((8, 9), True, 165.2e12)
    assert gpu.features is not None
    assert gpu.features.fp8
    assert not gpu_from_profile("t4").bf16
    with pytest.raises(OptionError):
        gpu_from_profile("voodoo")


@pytest.mark.parametrize("scenario", ["laptop", "garbage", "none"])
def test_a_locale_without_utf_8(driver: Any, scenario: str) -> None:
    run = driver.autoft(scenario, "probe", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (run.returncode, run.stderr) == (0, "")
    assert "Traceback" not in run.stdout
