"""Accelerators that autoft does not train on, on folders laid out as Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoft.profiles.hardware import Host
from autoft.profiles.other_accelerators import ON_THE_CPU, other_accelerators

GIB = 2**30
HOST = Host(cpu="c", cores=2, ram_total_bytes=1, ram_available_bytes=1, disk_path="/", disk_free_bytes=1)
PCI_IDS = """# a comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]
\t\t1002 0e3b  a board
10de  NVIDIA Corporation
\t56a0  not this one
8086  Intel Corporation
\t56a0  DG2 [Arc A770]
C 03  Display controller
"""


def pci(root: Path, address: str, vendor: str, device: str, driver: str | None = None, **files: str) -> Path:
    folder = root / "sys/devices/pci0000:00" / address
    folder.mkdir(parents=True)
    for name, text in {"vendor": vendor, "device": device, **files}.items():
        (folder / name).write_text(f"{text}\n")
    bus = root / "sys/bus/pci/devices"
    bus.mkdir(parents=True, exist_ok=True)
    (bus / address).symlink_to(folder)
    if driver is not None:
        home = root / "sys/bus/pci/drivers" / driver
        home.mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(home)
    return folder


def in_class(root: Path, name: str, folder: Path) -> None:
    (root / "sys/class" / name).mkdir(parents=True)
    (root / "sys/class" / name / "device").symlink_to(folder)


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert other_accelerators(HOST, tmp_path) == ()


def test_amd_with_rocms_kernel_driver(tmp_path: Path) -> None:
    memory = {"mem_info_vram_total": str(24 * GIB), "mem_info_vram_used": str(GIB)}
    card = pci(tmp_path, "0000:03:00.0", "0x1002", "0x744c", "amdgpu", **memory)
    in_class(tmp_path, "drm/card1", card)
    in_class(tmp_path, "drm/card1-DP-1", card)  # a connector
    in_class(tmp_path, "drm/renderD128", card)
    for number, text in enumerate(("gfx_target_version 0\n", "location_id 768\ngfx_target_version 110000\ndomain 0\n")):
        node = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(text)
    (tmp_path / "usr/share/misc").mkdir(parents=True)
    (tmp_path / "usr/share/misc/pci.ids").write_text(PCI_IDS)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    (found,) = other_accelerators(HOST, tmp_path)
    assert (found.vendor, found.name) == ("AMD", "Navi 31 [Radeon RX 7900 XT/7900 XTX] (gfx1100)")
    assert (found.driver, found.total_bytes, found.free_bytes) == ("amdgpu", 24 * GIB, 23 * GIB)
    assert found.works == ON_THE_CPU
    assert found.needed.startswith("a ROCm build of PyTorch")


def test_amd_that_names_itself_and_lacks_rocm(tmp_path: Path) -> None:
    card = pci(tmp_path, "0000:03:00.0", "0x1002", "0x74a1", "amdgpu", product_name="AMD Instinct MI300X")
    in_class(tmp_path, "drm/card0", card)
    (found,) = other_accelerators(HOST, tmp_path)
    assert (found.name, found.total_bytes, found.free_bytes) == ("AMD Instinct MI300X", None, None)
    assert "/dev/kfd is missing" in found.needed


def test_intels_discrete_gpu_and_not_the_processors(tmp_path: Path) -> None:
    in_class(tmp_path, "drm/card0", pci(tmp_path, "0000:00:02.0", "0x8086", "0xa780", "i915"))
    in_class(tmp_path, "drm/card1", pci(tmp_path, "0000:04:00.0", "0x8086", "0x56a0", "xe"))
    (tmp_path / "usr/share/hwdata").mkdir(parents=True)
    (tmp_path / "usr/share/hwdata/pci.ids").write_text(PCI_IDS)
    (found,) = other_accelerators(HOST, tmp_path)
    assert (found.vendor, found.name, found.driver) == ("Intel", "DG2 [Arc A770]", "xe")


def test_nvidia_and_an_npu_are_none_of_these(tmp_path: Path) -> None:
    in_class(tmp_path, "drm/card0", pci(tmp_path, "0000:01:00.0", "0x10de", "0x2684", "nvidia"))
    in_class(tmp_path, "accel/accel0", pci(tmp_path, "0000:00:0b.0", "0x8086", "0x7d1d", "intel_vpu"))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/accel0").touch()
    assert other_accelerators(HOST, tmp_path) == ()


def test_gaudi(tmp_path: Path) -> None:
    in_class(tmp_path, "accel/accel0", pci(tmp_path, "0000:33:00.0", "0x1da3", "0x1020", "habanalabs"))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/accel0").touch()
    (found,) = other_accelerators(HOST, tmp_path)
    assert (found.vendor, found.name, found.driver) == ("Intel", "Gaudi accelerator 1da3:1020", "habanalabs")


def test_tpus_on_the_bus_beside_googles_network_card(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:04.0", "0x1ae0", "0x005e")
    pci(tmp_path, "0000:00:05.0", "0x1ae0", "0x005e")
    pci(tmp_path, "0000:00:06.0", "0x1ae0", "0x0042", "gve")
    assert [(found.vendor, found.name) for found in other_accelerators(HOST, tmp_path)] == [("Google", "TPU v4")] * 2


def test_tpus_in_a_container_that_hides_the_bus(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for number in range(4):
        (tmp_path / f"dev/accel{number}").touch()
    assert [found.name for found in other_accelerators(HOST, tmp_path)] == ["TPU"] * 4


def test_apple_silicon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr("platform.machine", lambda: "arm64")
    mac = replace(HOST, system="macos", cpu="Apple M3 Max", ram_total_bytes=64 * GIB, ram_available_bytes=40 * GIB)
    (found,) = other_accelerators(mac, tmp_path)
    assert (found.vendor, found.name) == ("Apple", "Apple M3 Max GPU (shares the 64 GiB of memory)")
    assert (found.total_bytes, found.free_bytes, found.works) == (64 * GIB, 40 * GIB, ON_THE_CPU)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert other_accelerators(mac, tmp_path) == ()
