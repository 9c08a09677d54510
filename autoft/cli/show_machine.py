"""A machine for people: its GPUs, what holds their memory, what they can do; the host; what autoft cannot use."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from autoft import render
from autoft.profiles.hardware import (
    Accelerator,
    Features,
    Gpu,
    GpuProcess,
    GpuStatus,
    Hardware,
    Host,
    MigInstance,
    in_words,
)
from autoft.units import size

Rows = list[tuple[str, str]]
USES = {"models": "for models", "cache": "for autoft's cache", "outputs": "for outputs"}
SHARED_REST_BYTES = 2**20  # less than this that nobody owns up to is not worth a line


def show_machine(hardware: Hardware, console: Console) -> None:
    """All that is known, in sections."""
    for gpu in hardware.gpus:
        title = gpu.name if gpu.index is None else f"GPU {gpu.index}: {gpu.name}"
        _section(console, title, gpu_facts(gpu))
    if not hardware.gpus:
        why = hardware.no_gpu_reason or "unknown"
        _section(console, "No GPU for autoft", [("Why", why), ("So", "training runs on the CPU")])
    for other in hardware.accelerators:
        _section(console, f"{other.vendor}: {other.name}", _accelerator_facts(other))
    if hardware.driver_version:
        _section(console, "Driver", _driver_facts(hardware))
    _section(console, "Host", _host_facts(hardware.host))
    for note in hardware.notes:
        console.print(Text(f"Note: {note}", style="dim"))


def _section(console: Console, title: str, rows: Rows) -> None:
    console.print(Text(title, style="bold"))
    console.print(render.facts(rows))


def gpu_facts(gpu: Gpu) -> Rows:
    """A GPU, row by row."""
    rows = [("Memory", _memory(gpu)), ("Used by", "\n".join(_holders(gpu)) or "no process reported")]
    rows += [("Compute", _compute(gpu))]
    if gpu.status is not None:
        rows += _status_facts(gpu.status)
    if gpu.unknown:
        rows += [("Unknown", "\n".join(_unknown(gpu.unknown)))]
    return rows


def _memory(gpu: Gpu) -> str:
    words = f"{size(gpu.free_bytes)} free of {size(gpu.total_bytes)}"
    return f"{words}, shared with the host" if gpu.unified_memory else words


def _holders(gpu: Gpu) -> list[str]:
    """The desktop as one, then each other process, then what is used and nobody's."""
    desktop = [process for process in gpu.processes if process.desktop]
    lines = []
    if desktop:
        names = ", ".join(dict.fromkeys(process.name or "unnamed" for process in desktop))
        desktop_size = "size unknown" if gpu.desktop_bytes is None else size(gpu.desktop_bytes)
        lines.append(f"the desktop: {desktop_size} ({names})")
    lines += [_holder(process) for process in gpu.processes if not process.desktop]
    sizes = [process.used_bytes for process in gpu.processes]
    known = sum(num_bytes for num_bytes in sizes if num_bytes is not None)
    rest = (gpu.used_bytes or 0) - known
    if rest > SHARED_REST_BYTES:
        lines.append(f"the driver{' and those of unknown size' if None in sizes else ''}: {size(rest)}")
    return lines


def _holder(process: GpuProcess) -> str:
    used = "size unknown" if process.used_bytes is None else size(process.used_bytes)
    owner = f", {process.user}" if process.user else ""
    return f"{process.name or 'unnamed process'} (pid {process.pid}{owner}): {used}"


def _compute(gpu: Gpu) -> str:
    if gpu.compute_capability is None or gpu.features is None:
        return "capability unknown"
    capability = ".".join(map(str, gpu.compute_capability))
    return f"capability {capability} ({gpu.features.architecture}): {', '.join(_abilities(gpu.features))}"


def _abilities(features: Features) -> list[str]:
    kernels = [name for name, has in (("4", features.bitsandbytes_4bit), ("8", features.bitsandbytes_int8)) if has]
    return [
        "no bfloat16" if features.bf16 == "no" else f"bfloat16 {features.bf16}",
        "FP8" if features.fp8 else "no FP8",
        f"{'' if features.flash_attention_2 else 'no '}FlashAttention-2",
        f"bitsandbytes in {' and '.join(kernels)} bits" if kernels else "no bitsandbytes",
    ]


def _status_facts(status: GpuStatus) -> Rows:
    rows = [
        ("Clocks", _joined(_of("SM", status.sm_clock_mhz, status.sm_clock_max_mhz, "MHz"), _memory_clock(status))),
        ("Power", _of("", status.power_w, status.power_limit_w, "W")),
        ("Heat", _heat(status)),
        ("Slowed by", "" if status.throttle is None else ", ".join(status.throttle) or "nothing"),
        ("Busy", "" if status.busy_percent is None else f"{status.busy_percent}% of the time"),
        ("PCIe", _pcie(status)),
        ("NVLink", _nvlink(status)),
        ("MIG", "\n".join(map(_mig, status.mig_instances))),
        ("Set to", _joined(*_modes(status))),
    ]
    return [(name, value) for name, value in rows if value]


def _of(name: str, now: float | None, most: float | None, unit: str) -> str:
    """ "SM 1425 of 2100 MHz", with what is known of it."""
    if now is None and most is None:
        return ""
    words = f"at most {most:.0f}" if now is None else f"{now:.0f}" + ("" if most is None else f" of {most:.0f}")
    return f"{name} {words} {unit}".strip()


def _memory_clock(status: GpuStatus) -> str:
    return _of("memory", status.memory_clock_mhz, status.memory_clock_max_mhz, "MHz")


def _heat(status: GpuStatus) -> str:
    now = "" if status.temperature_c is None else f"{status.temperature_c} C"
    limit = status.slowdown_temperature_c
    return _joined(now, "" if limit is None else f"slows down at {limit} C")


def _pcie(status: GpuStatus) -> str:
    now, most = (
        f"gen{generation} x{width}" if generation and width else ""
        for generation, width in (
            (status.pcie_generation, status.pcie_width),
            (status.pcie_max_generation, status.pcie_max_width),
        )
    )
    return _joined(f"{now} now" if now else "", f"{most} at most" if most else "")


def _nvlink(status: GpuStatus) -> str:
    if not status.nvlink_active:
        return "" if status.nvlink_active is None else "no link is up"
    links = f"{status.nvlink_active} link{'s' if status.nvlink_active > 1 else ''}"
    return f"{links} to {', '.join(status.nvlink_peers)}"


def _mig(instance: MigInstance) -> str:
    memory = "size unknown" if instance.total_bytes is None else size(instance.total_bytes)
    name = instance.name or "instance"
    return f"{name} ({memory}, {'visible' if instance.visible else 'not visible'}): {instance.uuid or 'UUID unknown'}"


def _modes(status: GpuStatus) -> list[str]:
    switches = (("ECC", status.ecc), ("MIG", status.mig), ("persistence", status.persistence))
    modes = [f"{name} {'on' if on else 'off'}" for name, on in switches if on is not None]
    if status.display_attached is not None or status.display_active is not None:
        attached = "a display attached" if status.display_attached else "no display attached"
        modes.append(attached + (" and in use" if status.display_active else ""))
    return [*modes, *([f"driver model {status.driver_model}"] if status.driver_model else [])]


def _unknown(reasons: dict[str, str]) -> list[str]:
    """A line a reason: "Not Supported: ecc, mig"."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(in_words(name))
    return [f"{reason}: {', '.join(names)}" for reason, names in by_reason.items()]


def _accelerator_facts(other: Accelerator) -> Rows:
    rows = [("Today", other.works), ("To use it", other.needed)]
    if other.total_bytes is not None:
        free = "" if other.free_bytes is None else f"{size(other.free_bytes)} free of "
        rows.append(("Memory", free + size(other.total_bytes)))
    return [*rows, *([("Driver", other.driver)] if other.driver else [])]


def _driver_facts(hardware: Hardware) -> Rows:
    rows = [("Version", hardware.driver_version or "unknown")]
    return [*rows, ("CUDA", f"up to {hardware.cuda_version}")] if hardware.cuda_version else rows


def _host_facts(host: Host) -> Rows:
    sets = ", ".join(host.instruction_sets or ())
    rows = [
        ("CPU", _joined(host.cpu, f"{host.cores} usable core{'s' if host.cores != 1 else ''}", sets)),
        ("Memory", f"{size(host.ram_available_bytes)} available of {size(host.ram_total_bytes)}"),
        ("Swap", _swap(host)),
        ("Disk", "\n".join(_disks(host))),
        ("System", _system(host)),
        ("Python", host.python),
        ("Stack", ", ".join(_stack(host))),
    ]
    return [(name, value) for name, value in rows if value]


def _system(host: Host) -> str:
    name = f"WSL 2 on {host.platform}" if host.system == "wsl2" else host.platform
    return f"{name}, in a container ({host.container})" if host.container else name


def _swap(host: Host) -> str:
    if host.swap_total_bytes is None or host.swap_free_bytes is None:
        return "unknown"
    return f"{size(host.swap_free_bytes)} free of {size(host.swap_total_bytes)}" if host.swap_total_bytes else "none"


def _disks(host: Host) -> Iterable[str]:
    """A line a place; a record from before there were several has one."""
    for disk in host.disks:
        yield f"{size(disk.free_bytes)} free {USES[disk.use]} at {disk.path}"
    if not host.disks:
        yield f"{size(host.disk_free_bytes)} free at {host.disk_path}"


def _stack(host: Host) -> Iterable[str]:
    for package, version in host.versions.items():
        built = host.torch_build if package == "torch" else None
        yield f"{package} {version}" + (f" (built for {'the CPU' if built == 'cpu' else built})" if built else "")


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
