"""Accelerators that are not NVIDIA's, on folders shaped like /sys and /dev."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoft.profiles.host import read_host
from autoft.profiles.other_accelerators import other_accelerators

HOST = read_host()


def device(root: Path, address: str, **files: str) -> Path:
    """A PCI device with files; its driver is a link, as in /sys."""
    folder = root / "sys/devices/pci0000:00" / address
    folder.mkdir(parents=True)
    for name, text in files.items():
        if name == "driver":
            (root / "sys/bus/pci/drivers" / text).mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(root / "sys/bus/pci/drivers" / text)
        else:
            (folder / name).write_text(text + "\n")
    (root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
    (root / "sys/bus/pci/devices" / address).symlink_to(folder)
    return folder


def card(root: Path, number: int, folder: Path) -> None:
    (root / f"sys/class/drm/card{number}").mkdir(parents=True)
    (root / f"sys/class/drm/card{number}/device").symlink_to(folder)
    (root / f"sys/class/drm/card{number}-DP-1").mkdir()


def test_an_empty_machine_has_none(tmp_path: Path) -> None:
    assert other_accelerators(HOST, tmp_path) == ()


def test_a_radeon_with_rocms_driver(tmp_path: Path) -> None:
    folder = device(
        tmp_path,
        "0000:03:00.0",
        vendor="0x1002",
        device="0x744c",
        product_name="Radeon RX 7900 XTX",
        mem_info_vram_total="25753026560",
        mem_info_vram_used="1073741824",
        driver="amdgpu",
    )
    card(tmp_path, 0, folder)
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text("simd_count 192\nlocation_id 768\ndomain 0\ngfx_target_version 110000\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    (radeon,) = other_accelerators(HOST, tmp_path)
    assert (radeon.vendor, radeon.name, radeon.driver) == ("AMD", "Radeon RX 7900 XTX (gfx1100)", "amdgpu")
    assert (radeon.total_bytes, radeon.free_bytes) == (25753026560, 24679284736)
    assert radeon.works == "autoft trains on the CPU here"
    assert radeon.needed.startswith("a ROCm build of PyTorch")


def test_a_radeon_without_it_and_by_its_number_alone(tmp_path: Path) -> None:
    card(tmp_path, 0, device(tmp_path, "0000:03:00.0", vendor="0x1002", device="0x744c"))
    (radeon,) = other_accelerators(HOST, tmp_path)
    assert radeon.name == "AMD GPU 1002:744c"
    assert "/dev/kfd is missing" in radeon.needed
    assert (radeon.total_bytes, radeon.free_bytes, radeon.driver) == (None, None, None)


def test_an_arc_but_not_the_gpu_in_the_processor(tmp_path: Path) -> None:
    card(tmp_path, 0, device(tmp_path, "0000:00:02.0", vendor="0x8086", device="0xa780", driver="i915"))
    card(tmp_path, 1, device(tmp_path, "0000:03:00.0", vendor="0x8086", device="0x56a0", driver="xe"))
    (tmp_path / "usr/share/misc").mkdir(parents=True)
    (tmp_path / "usr/share/misc/pci.ids").write_text(
        "8086  Intel Corporation\n\t56a0  DG2 [Arc A770]\n\t\t1849 5942  A subsystem\n10de  NVIDIA Corporation\n"
    )
    (arc,) = other_accelerators(HOST, tmp_path)
    assert (arc.vendor, arc.name, arc.driver) == ("Intel", "DG2 [Arc A770]", "xe")


def test_gaudi_tpu_and_an_npu_that_is_neither(tmp_path: Path) -> None:
    gaudi = device(tmp_path, "0000:19:00.0", vendor="0x1da3", device="0x1020", driver="habanalabs")
    npu = device(tmp_path, "0000:00:0b.0", vendor="0x8086", device="0x7d1d")
    for number, folder in enumerate((gaudi, npu)):
        place = tmp_path / f"sys/class/accel/accel{number}"
        place.mkdir(parents=True)
        (place / "device").symlink_to(folder)
    (tmp_path / "dev").mkdir()
    for number in range(2):
        (tmp_path / f"dev/accel{number}").touch()
    assert [other.name for other in other_accelerators(HOST, tmp_path)] == ["Gaudi accelerator 1da3:1020"]
    device(tmp_path, "0000:05:00.0", vendor="0x1ae0", device="0x0063")
    assert [other.name for other in other_accelerators(HOST, tmp_path)][-1] == "TPU v5e"


def test_apple_silicon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    mac = replace(HOST, system="macos", cpu="Apple M4 Max", ram_total_bytes=64 * 2**30)
    (gpu,) = other_accelerators(mac, tmp_path)
    assert (gpu.vendor, gpu.name) == ("Apple", "Apple M4 Max GPU (shares the 64 GiB of memory)")
    assert other_accelerators(replace(mac, system="linux"), tmp_path) == ()
