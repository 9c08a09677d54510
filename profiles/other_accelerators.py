"""Which accelerators other than NVIDIA's are here? By what Linux shows of them, or by the machine for Apple.

autoft trains on NVIDIA GPUs and on CPUs. The others are named with what works on them today, so that nobody takes them
for used, or for absent.
"""

from __future__ import annotations

import functools
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path

from autoft.profiles.files import entries, number, text
from autoft.profiles.hardware import Accelerator, Host

AMD, INTEL, HABANA, GOOGLE = "0x1002", "0x8086", "0x1da3", "0x1ae0"
ON_THE_CPU = "autoft trains on the CPU here"
# Source: jax/_src/hardware_utils.py. Google's other PCI devices are network cards and disks.
TPUS = {
    "0x0027": "TPU v2 or v3",
    "0x0056": "TPU",
    "0x005e": "TPU v4",
    "0x0062": "TPU v5p",
    "0x0063": "TPU v5e",
    "0x006f": "TPU v6e",
    "0x0076": "TPU v7x",
}
PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


def other_accelerators(host: Host, root: Path = Path("/")) -> tuple[Accelerator, ...]:
    """All that could train and that is not NVIDIA's. root: where /sys, /dev and /usr are."""
    return (*_amd(root), *_intel(root), *_gaudi(root), *_tpus(root), *_apple(host))


def _amd(root: Path) -> list[Accelerator]:
    """GPUs of amdgpu, with what ROCm's kernel interface (kfd) says of their kind."""
    kinds = _kfd_kinds(root)
    accelerators = []
    for device in _drm_devices(root, AMD):
        address = device.resolve().name
        total, used = number(device / "mem_info_vram_total"), number(device / "mem_info_vram_used")
        kind = kinds.get(address)
        needed = "a ROCm build of PyTorch, and in autoft a memory model of its allocator and kernels"
        if not (root / "dev/kfd").exists():
            needed = f"ROCm's kernel driver (/dev/kfd is missing), {needed}"
        accelerators.append(
            Accelerator(
                vendor="AMD",
                name=f"{_product(device, root, 'AMD GPU')}{f' ({kind})' if kind else ''}",
                works=ON_THE_CPU,
                needed=needed,
                driver=_driver(device),
                total_bytes=total,
                free_bytes=total - used if total is not None and used is not None else None,
            )
        )
    return accelerators


def _kfd_kinds(root: Path) -> dict[str, str]:
    """gfx names by PCI address: gfx_target_version 110001 is gfx1101, 90010 is gfx90a."""
    kinds = {}
    for node in entries(root / "sys/class/kfd/kfd/topology/nodes"):
        properties = dict(re.findall(r"^(\w+) (\d+)$", text(node / "properties"), re.MULTILINE))
        version, place = int(properties.get("gfx_target_version", 0)), int(properties.get("location_id", 0))
        if version:
            domain = int(properties.get("domain", 0))
            address = f"{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
            kinds[address] = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return kinds


def _intel(root: Path) -> list[Accelerator]:
    """Discrete GPUs of i915 and xe: the one in the processor sits on the root bus as 00:02.0."""
    accelerators = []
    for device in _drm_devices(root, INTEL):
        if not re.search(r":00:02\.\d$", device.resolve().name):
            accelerators.append(
                Accelerator(
                    vendor="Intel",
                    name=_product(device, root, "Intel GPU"),
                    works=ON_THE_CPU,
                    needed="an XPU build of PyTorch, and in autoft its device and a memory model of its allocator",
                    driver=_driver(device),
                )
            )
    return accelerators


def _gaudi(root: Path) -> list[Accelerator]:
    folders = [*entries(root / "sys/class/accel", "accel*"), *entries(root / "sys/class/habanalabs", "hl*")]
    devices = {entry.joinpath("device").resolve(): entry / "device" for entry in folders}
    return [
        Accelerator(
            vendor="Intel",
            name=_product(device, root, "Gaudi accelerator"),
            works=ON_THE_CPU,
            needed="Habana's build of PyTorch and optimum-habana; autoft has no support for it",
            driver=_driver(device),
        )
        for device in devices.values()
        if text(device / "vendor") == HABANA
    ]


def _tpus(root: Path) -> list[Accelerator]:
    """By the PCI bus; where that is hidden, as in a container, by /dev/accel*, but for those known to be others'."""
    names = [
        TPUS[text(device / "device")]
        for device in entries(root / "sys/bus/pci/devices")
        if text(device / "vendor") == GOOGLE and text(device / "device") in TPUS
    ]
    if not names:
        names = ["TPU" for entry in entries(root / "dev", "accel[0-9]*") if not _is_others(root, entry.name)]
    return [
        Accelerator(
            vendor="Google",
            name=name,
            works=ON_THE_CPU,
            needed="torch_xla; autoft has no support for it, and bitsandbytes has none either",
        )
        for name in names
    ]


def _is_others(root: Path, name: str) -> bool:
    """Whether an accel device is known to be somebody else's than Google's: Habana's, or an NPU of Intel or AMD."""
    vendor = text(root / "sys/class/accel" / name / "device/vendor")
    return bool(vendor) and vendor != GOOGLE


def _apple(host: Host) -> list[Accelerator]:
    if host.system != "macos" or platform.machine() != "arm64":
        return []
    return [
        Accelerator(
            vendor="Apple",
            name=f"{host.cpu} GPU (shares the {host.ram_total_bytes / 2**30:.0f} GiB of memory)",
            works=ON_THE_CPU,
            needed="in autoft the mps device and a memory model of its allocator; MLX is another way on such a machine",
            driver=_metal(),
            total_bytes=host.ram_total_bytes,
            free_bytes=host.ram_available_bytes,
        )
    ]


def _metal() -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        words = ["/usr/bin/sw_vers", "-productVersion"]
        return f"macOS {subprocess.run(words, capture_output=True, text=True, timeout=2, check=True).stdout.strip()}"
    return None


def _drm_devices(root: Path, vendor: str) -> list[Path]:
    """PCI devices of a vendor that have a graphics driver, each once."""
    cards = [entry for entry in entries(root / "sys/class/drm", "card*") if re.fullmatch(r"card\d+", entry.name)]
    devices = {card.joinpath("device").resolve(): card / "device" for card in cards}
    return [device for device in devices.values() if text(device / "vendor") == vendor]


def _driver(device: Path) -> str | None:
    """The kernel module that drives a device."""
    link = device / "driver"
    return link.resolve().name if link.exists() else None


def _product(device: Path, root: Path, otherwise: str) -> str:
    """What the card calls itself, else its entry in the system's list of PCI devices, else its number."""
    vendor, kind = (text(device / name).removeprefix("0x") for name in ("vendor", "device"))
    own = text(device / "product_name")
    return own or _pci_names(root).get((vendor, kind)) or f"{otherwise} {vendor}:{kind}"


@functools.lru_cache(maxsize=1)
def _pci_names(root: Path) -> dict[tuple[str, str], str]:
    """Names by (vendor, device) of AMD, Intel and Habana, from pci.ids: a megabyte, read only when a card asks."""
    wanted = {number.removeprefix("0x") for number in (AMD, INTEL, HABANA)}
    listed = next(filter(None, (text(root / name) for name in PCI_IDS)), "")
    names, vendor = {}, ""
    for line in listed.splitlines():
        if line[:1] not in "\t#":
            vendor = line[:4] if line[:4] in wanted else ""
        elif vendor and line[:1] == "\t" and line[1:2] != "\t":
            names[vendor, line[1:5]] = line[5:].strip()
    return names
