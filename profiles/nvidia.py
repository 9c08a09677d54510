"""Which NVIDIA GPUs can this process use, and what are they like? From the driver's answers (nvml.py) to records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autoft.profiles.capability import BF16_SINCE, features_of
from autoft.profiles.driver import Answers
from autoft.profiles.files import entries, text
from autoft.profiles.hardware import Gpu, GpuProcess, GpuStatus, Host, MigInstance
from autoft.profiles.visible import MANY_MIG_SINCE_DRIVER, Card, Instance, cuda_order, visible

NO_DRIVER = "no NVIDIA driver found"
# GPUs that have no memory of their own, by the names that NVML gives them: DGX Spark and Jetson modules
UNIFIED = re.compile(r"\b(GB10|Jetson|Orin|Xavier|Thor|Tegra|nvgpu)\b", re.IGNORECASE)
UNIFIED_REASON = "the GPU shares the host's memory, and NVML does not report it"
# Jetson modules by the chip in their device tree. Source: developer.nvidia.com/cuda-gpus
JETSON = {"tegra264": (11, 0), "tegra234": (8, 7), "tegra194": (7, 2), "tegra186": (6, 2), "tegra210": (5, 3)}
# Bits of nvmlClocksEventReasons (nvml.h). Two of their own: bits that this list does not know.
THROTTLE = (
    (0x1, "idle"),
    (0x2, "clocks set by an application"),
    (0x4, "power limit"),
    (0x8, "hardware slowdown"),
    (0x10, "sync boost with other GPUs"),
    (0x20, "heat (software)"),
    (0x40, "heat (hardware)"),
    (0x80, "power brake (hardware)"),
    (0x100, "display clock"),
    (0x200, "board limit"),
    (0x400, "reliability"),
)
# What draws a desktop and stays while something is trained, by process name
DESKTOP = frozenset(
    name
    for group in (
        "xorg x xwayland gnome-shell mutter kwin kwin_x11 kwin_wayland plasmashell sway hyprland weston cinnamon marco",
        "xfwm4 compiz picom budgie-wm cosmic-comp niri labwc river gdm sddm sddm-greeter lightdm nautilus",
        "gnome-remote-desktop-daemon gnome-control-center xdg-desktop-portal-gnome",
        "dwm explorer csrss winlogon logonui lockapp searchhost startmenuexperiencehost shellexperiencehost widgets",
        "textinputhost systemsettings applicationframehost msedgewebview2",
        "firefox firefox-bin firefox-esr chrome chromium chromium-browser brave msedge opera vivaldi-bin",
        "webkitwebprocess code slack discord teams spotify telegram-desktop thunderbird steam steamwebhelper",
    )
    for name in group.split()
)
STATUS_FIELDS = (
    "busy_percent",
    "sm_clock_mhz",
    "sm_clock_max_mhz",
    "memory_clock_mhz",
    "memory_clock_max_mhz",
    "power_w",
    "power_limit_w",
    "temperature_c",
    "slowdown_temperature_c",
    "ecc",
    "mig",
    "pcie_generation",
    "pcie_width",
    "pcie_max_generation",
    "pcie_max_width",
    "pcie_bus_id",
    "display_attached",
    "display_active",
    "persistence",
    "driver_model",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Nvidia:
    """What there is of NVIDIA. reason: why there is no usable GPU, of meaning only then."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    reason: str = "the driver reports no GPU"
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_nvidia(answers: Answers, host: Host, environment: Mapping[str, str], root: Path = Path("/")) -> Nvidia:
    """environment: where CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are. root: where /proc and /sys are."""
    by_nvml = _by_nvml(answers, host, environment)
    return by_nvml if by_nvml.gpus or answers.value("", "count") else _without_nvml(by_nvml, host, environment, root)


def moment(answers: Answers, index: int) -> dict[str, Any]:
    """What a round "moment" told of one GPU, by field; "total_bytes", "free_bytes" and "used_bytes" with the rest."""
    where = str(index)
    total, free, used = answers.value(where, "memory") or (None, None, None)
    names = (
        "power_w", "power_limit_w", "energy_j", "temperature_c", "busy_percent", "sm_clock_mhz", "memory_clock_mhz",
    )  # fmt: skip
    return {
        "total_bytes": total,
        "free_bytes": free,
        "used_bytes": used,
        **{name: answers.value(where, name) for name in names},
        "throttle": throttle_words(answers.value(where, "throttle")),
    }


def throttle_words(bits: int | None) -> tuple[str, ...] | None:
    """What holds the clocks back."""
    if bits is None:
        return None
    known = sum(bit for bit, _ in THROTTLE)
    words = [name for bit, name in THROTTLE if bits & bit]
    return (*words, *([f"unknown reason {bits & ~known:#x}"] if bits & ~known else []))


def _by_nvml(answers: Answers, host: Host, environment: Mapping[str, str]) -> Nvidia:
    version = answers.value("", "driver_version")
    versions = {"driver_version": version, "cuda_version": _cuda_version(answers.value("", "cuda_driver"))}
    count = answers.value("", "count")
    if not count:
        return Nvidia(**versions, reason=_why_none(answers))
    cards = [_card(answers, str(index)) for index in range(count)]
    numbered, certain = cuda_order(cards, environment.get("CUDA_DEVICE_ORDER"))
    setting = environment.get("CUDA_VISIBLE_DEVICES")
    shown = visible(setting, numbered, many_mig=_major(version) >= MANY_MIG_SINCE_DRIVER)
    if not shown:
        return Nvidia(**versions, reason=_why_none_visible(setting, cards))
    gpus: list[Gpu] = []
    unread: list[str] = []
    for where in shown:
        gpu = _gpu(answers, where, host, cards, shown)
        if isinstance(gpu, Gpu):
            gpus.append(gpu)
        else:
            unread.append(gpu)
    notes = () if certain or not re.search(r"(^|,)\s*\+?\d", setting or "") else (_order_note(setting),)
    reason = answers.failure or f"the driver does not tell the memory of {', '.join(unread)}"
    return Nvidia(**versions, gpus=tuple(gpus), reason=reason, unread=tuple(unread), notes=notes)


def _cuda_version(number: int | None) -> str | None:
    """The newest CUDA that the driver runs, such as "12.4"; NVML says 12040."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _major(version: str | None) -> int:
    """Of a driver's version; one that is not told counts as old."""
    digits = re.match(r"\d+", version or "")
    return int(digits[0]) if digits else 0


def _why_none(answers: Answers) -> str:
    if answers.reason("", "library") and answers.failure is None and "library" in answers.reasons.get("", {}):
        return NO_DRIVER
    if "init" in answers.reasons.get("", {}):
        return f"the NVIDIA driver did not answer: {answers.reasons['']['init']}"
    if answers.failure is not None:
        return answers.failure
    if answers.value("", "count") is None:
        return f"the NVIDIA driver does not tell how many GPUs there are: {answers.reason('', 'count')}"
    return "the driver reports no GPU"


def _why_none_visible(setting: str | None, cards: list[Card]) -> str:
    many = f"the {len(cards)} GPUs here" if len(cards) > 1 else "the one GPU here"
    empty = [f"GPU {card.key}" for card in cards if card.instances == ()]
    without = f"{', '.join(empty)} in MIG mode without an instance: nvidia-smi mig -cgi makes one" if empty else ""
    if setting is None:
        return without
    reason = f"CUDA_VISIBLE_DEVICES={setting!r} leaves none of {many} visible"
    return f"{reason} ({without})" if without else reason


def _order_note(setting: str | None) -> str:
    return (
        f"CUDA_VISIBLE_DEVICES={setting!r} counts GPUs that differ, which CUDA numbers fastest first by a rule of its "
        "own: CUDA_DEVICE_ORDER=PCI_BUS_ID, or UUIDs, make sure"
    )


def _card(answers: Answers, where: str) -> Card:
    cores, clock = answers.value(where, "cores"), answers.value(where, "sm_clock_max_mhz")
    return Card(
        key=where,
        uuid=answers.value(where, "uuid"),
        bus_id=answers.value(where, "pcie_bus_id"),
        speed=cores * clock if cores and clock else None,
        instances=_instances(answers, where) if answers.value(where, "mig") else None,
    )


def _instances(answers: Answers, where: str) -> tuple[Instance, ...]:
    keys = [key for key in answers.values if key.startswith(f"{where}.")]
    return tuple(
        Instance(
            key=key,
            uuid=answers.value(key, "uuid"),
            gpu_instance=answers.value(key, "gpu_instance"),
            compute_instance=answers.value(key, "compute_instance"),
        )
        for key in sorted(keys, key=lambda key: int(key.partition(".")[2]))
    )


def _gpu(answers: Answers, where: str, host: Host, cards: list[Card], shown: list[str]) -> Gpu | str:
    """A GPU or MIG instance; where its memory cannot be read, what it is and why."""
    parent = where.partition(".")[0]
    name = answers.value(where, "name") or answers.value(parent, "name")
    memory = _memory(answers, where, name, host)
    if isinstance(memory, str):
        return f"GPU {where}{f' ({name})' if name else ''}: {memory}"
    total, free, used = memory
    unified = used is None
    capability = answers.value(parent, "compute_capability")
    capability = tuple(capability) if capability else None
    status = _status(answers, parent, cards, shown)
    processes = _processes(answers, where)
    desktop = [process.used_bytes for process in processes if process.desktop]
    unknown = _unknown(answers, where, parent)
    if unified:
        unknown["used_bytes"] = UNIFIED_REASON
    return Gpu(
        name=name or "unnamed NVIDIA GPU",
        origin="nvml",
        total_bytes=total,
        free_bytes=free,
        used_bytes=used,
        index=int(parent),
        uuid=answers.value(where, "uuid"),
        compute_capability=capability,
        multiprocessors=answers.value(where, "multiprocessors"),
        bf16=capability is not None and capability >= BF16_SINCE,
        unified_memory=unified,
        pcie=_pcie(status.pcie_generation, status.pcie_width),
        processes=processes,
        desktop_bytes=sum(size for size in desktop if size is not None) if any(desktop) else None,
        features=features_of(capability) if capability else None,
        status=status,
        unknown=unknown,
    )


def _memory(answers: Answers, where: str, name: str | None, host: Host) -> tuple[int, int, int | None] | str:
    """(total, free, used) bytes; the host's and None where the GPU shares them; else why they are not known."""
    total, free, used = answers.value(where, "memory") or (0, 0, 0)
    if total > 0:
        return total, min(free, total), used
    if name and UNIFIED.search(name):
        return host.ram_total_bytes, host.ram_available_bytes, None
    reason = answers.reason(where, "memory") or answers.reason(where, "handle")
    return reason or "it says that it has 0 bytes"


def _status(answers: Answers, where: str, cards: list[Card], shown: list[str]) -> GpuStatus:
    values = {name: answers.value(where, name) for name in STATUS_FIELDS}
    links = answers.value(where, "nvlinks")
    indices = {_bus(card.bus_id): card.key for card in cards if card.bus_id}
    peers = {f"GPU {indices[_bus(end)]}" if _bus(end) in indices else end or "unknown" for end in links or ()}
    return GpuStatus(
        **values,
        throttle=throttle_words(answers.value(where, "throttle")),
        mig_instances=tuple(_mig_instance(answers, i.key, shown) for i in _instances(answers, where)),
        nvlink_active=len(links) if links is not None else None,
        nvlink_peers=tuple(sorted(peers)),
    )


def _mig_instance(answers: Answers, key: str, shown: list[str]) -> MigInstance:
    total, free, _ = answers.value(key, "memory") or (None, None, None)
    return MigInstance(
        uuid=answers.value(key, "uuid"),
        name=answers.value(key, "name"),
        gpu_instance=answers.value(key, "gpu_instance"),
        compute_instance=answers.value(key, "compute_instance"),
        total_bytes=total,
        free_bytes=free,
        visible=key in shown,
    )


def _bus(bus_id: str | None) -> str:
    """A PCI bus id that compares: the domain has four digits or eight, in either case."""
    return (bus_id or "").casefold()[-10:]


def _pcie(generation: int | None, width: int | None) -> str | None:
    """The link as it runs now: an idle card may have stepped down to a lower generation."""
    return f"gen{generation} x{width}" if generation and width else None


def _unknown(answers: Answers, where: str, parent: str) -> dict[str, str]:
    """Why fields are None, by their names."""
    own = ("name", "uuid", "compute_processes", "graphics_processes")
    of_card = ("compute_capability", "throttle", "nvlinks", *STATUS_FIELDS)
    place_of = dict.fromkeys(own, where) | dict.fromkeys(of_card, parent)
    reasons = {name: answers.reason(place, name) for name, place in place_of.items()}
    return {{"nvlinks": "nvlink_active"}.get(name, name): reason for name, reason in reasons.items() if reason}


def _processes(answers: Answers, where: str) -> tuple[GpuProcess, ...]:
    """Who holds memory on the card, biggest first, those whose size the driver does not tell at the end."""
    used: dict[int, int | None] = {}
    kinds: dict[int, set[str]] = {}
    for kind in ("compute", "graphics"):
        for pid, num_bytes in answers.value(where, f"{kind}_processes") or []:
            # one that computes and draws is on both lists, with the same figure
            used[pid] = used.get(pid) or num_bytes
            kinds.setdefault(pid, set()).add(kind)
    processes = [_process(pid, num_bytes, kinds[pid]) for pid, num_bytes in used.items()]
    return tuple(sorted(processes, key=lambda process: (-(process.used_bytes or 0), process.pid)))


def _process(pid: int, used_bytes: int | None, kinds: Iterable[str]) -> GpuProcess:
    name, user = _name_and_user(pid)
    lists = frozenset(kinds)
    return GpuProcess(
        pid=pid,
        name=name,
        user=user,
        used_bytes=used_bytes,
        kind="both" if len(lists) > 1 else "graphics" if "graphics" in lists else "compute",
        desktop="graphics" in lists and is_desktop(name),
    )


def is_desktop(name: str | None) -> bool:
    """Whether a process of that name draws the desktop."""
    return bool(name) and str(name).casefold().removesuffix(".exe") in DESKTOP


def _name_and_user(pid: int) -> tuple[str | None, str | None]:
    try:
        process = psutil.Process(pid)
        name = str(process.name())
    except (psutil.Error, ValueError, OverflowError):
        return None, None
    try:
        return name, str(process.username())
    except (psutil.Error, KeyError):
        return name, None


def _without_nvml(found: Nvidia, host: Host, environment: Mapping[str, str], root: Path) -> Nvidia:
    """A Jetson without NVML by its device tree; else why NVML found nothing, as far as the system knows."""
    chips = text(root / "proc/device-tree/compatible")
    chip = next((chip for chip in JETSON if chip in chips), None)
    if chip is not None:
        if not visible(environment.get("CUDA_VISIBLE_DEVICES"), [Card(key="0")]):
            setting = environment["CUDA_VISIBLE_DEVICES"]
            return Nvidia(reason=_why_none_visible(setting, [Card(key="0")]))
        return Nvidia(gpus=(_jetson(text(root / "proc/device-tree/model"), JETSON[chip], host),))
    if found.reason == NO_DRIVER and (hint := _why_no_driver(root)):
        return Nvidia(reason=f"{NO_DRIVER}, {hint}")
    return found


def _jetson(model: str, capability: tuple[int, int], host: Host) -> Gpu:
    return Gpu(
        name=model or "NVIDIA Jetson",
        origin="system",
        total_bytes=host.ram_total_bytes,
        free_bytes=host.ram_available_bytes,
        index=0,
        compute_capability=capability,
        bf16=capability >= BF16_SINCE,
        unified_memory=True,
        features=features_of(capability),
        unknown={"used_bytes": UNIFIED_REASON, "status": "this Jetson has no NVML"},
    )


def _why_no_driver(root: Path) -> str | None:
    """What the system shows of an NVIDIA GPU whose driver's library cannot be loaded."""
    if (root / "proc/driver/nvidia/version").exists():
        return "though its kernel module runs: in a container, start it with its GPUs (docker run --gpus all)"
    for device in entries(root / "sys/bus/pci/devices"):
        if text(device / "vendor") == "0x10de" and text(device / "class").startswith("0x03"):
            return f"though an NVIDIA GPU is on the bus ({device.name}, device {text(device / 'device')}): install it"
    return None
