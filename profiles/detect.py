"""What is this machine? GPUs through NVML, the host through psutil and the cgroup files. No torch, no pydantic.

NVML may answer "not supported" to any question about a card: that answer is None here, never an error.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from autoft.profiles.gpu_catalogue import BF16_SINCE, find_gpu
from autoft.profiles.hardware import Gpu, GpuProcess, Hardware, Host

# Assumption: of memory that a GPU shares with its host, what an idle host leaves
UNIFIED_FREE = 0.85
# Of /proc/cpuinfo: AVX-512 and AMX on x86, the Arm extension
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def detect(disk_path: Path | None = None) -> Hardware:
    """This machine, read now.

    disk_path: where the disk is asked for its room, default the current folder; a missing path counts as its parent.
    GPUs come in the order of CUDA_VISIBLE_DEVICES, each with the index that nvidia-smi shows. Indices in that variable
    are read in PCI bus order, which is CUDA's own only with CUDA_DEVICE_ORDER=PCI_BUS_ID or with equal cards.
    """
    found = _nvidia()
    return Hardware(
        host=_host(disk_path),
        gpus=found.gpus,
        driver_version=found.driver_version,
        cuda_version=found.cuda_version,
        no_gpu_reason=None if found.gpus else found.reason,
    )


def gpu_from_profile(name: str) -> Gpu:
    """A catalogue card, idle, as if it were here; of memory that it shares with its host, the host takes its part.

    Raises: OptionError for a name that the catalogue does not know.
    """
    profile = find_gpu(name)
    half, single, memory = profile.half_flops_per_s, profile.float32_flops_per_s, profile.memory_bytes_per_s
    return Gpu(
        name=profile.product,
        origin="profile",
        total_bytes=profile.memory_bytes,
        free_bytes=int(profile.memory_bytes * (UNIFIED_FREE if profile.unified_memory else 1)),
        compute_capability=profile.compute_capability,
        multiprocessors=int(profile.multiprocessors.value) if profile.multiprocessors else None,
        bf16=profile.native_bf16,
        half_flops_per_s=half.value if half else None,
        float32_flops_per_s=single.value if single else None,
        memory_bytes_per_s=memory.value if memory else None,
        tdp_w=profile.tdp_w.value if profile.tdp_w else None,
        profile=profile.name,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Nvidia:
    """What the NVIDIA driver told; reason says why it told of no usable GPU."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    reason: str = "the driver reports no GPU"


def _nvidia() -> _Nvidia:
    try:
        with _nvml():
            gpus, reason = _gpus()
            return _Nvidia(
                gpus=gpus,
                driver_version=_ask(pynvml.nvmlSystemGetDriverVersion),
                cuda_version=_cuda_version(),
                reason=reason,
            )
    except pynvml.NVMLError_LibraryNotFound:
        return _Nvidia(reason="no NVIDIA driver found")
    except pynvml.NVMLError as error:
        return _Nvidia(reason=f"the NVIDIA driver did not answer: {error}")


@contextmanager
def _nvml() -> Iterator[None]:
    """Raises: NVMLError when the driver's library is missing or does not start."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _ask(question: Callable[..., Any], *args: Any) -> Any:
    """NVML's answer, or None where it has none."""
    try:
        return question(*args)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _cuda_version() -> str | None:
    """The newest CUDA that the driver runs, such as "12.4"; NVML says 12040."""
    number = _ask(pynvml.nvmlSystemGetCudaDriverVersion)
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """The visible GPUs whose memory can be read, and why there is none (of meaning only then)."""
    handles = [_ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(pynvml.nvmlDeviceGetCount())]
    if not handles:
        return (), "the driver reports no GPU"
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = visible_indices(setting, [_ask(pynvml.nvmlDeviceGetUUID, h) if h is not None else None for h in handles])
    if not visible:
        return (), f"CUDA_VISIBLE_DEVICES={setting!r} leaves none of the {len(handles)} GPUs here visible"
    gpus = {index: _gpu(index, handles[index]) for index in visible}
    unread = [_label(index, handles[index]) for index, gpu in gpus.items() if gpu is None]
    return tuple(gpu for gpu in gpus.values() if gpu), f"the driver does not tell the memory of {', '.join(unread)}"


def visible_indices(setting: str | None, uuids: list[str | None]) -> list[int]:
    """Indices of the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order.

    An entry is an index or the beginning of a UUID. The first entry that names no GPU, or more than one, ends the list;
    a GPU named twice empties it.
    Source: CUDA programming guide, "CUDA Environment Variables"; torch.cuda reads it so.
    """
    if setting is None:
        return list(range(len(uuids)))
    indices: list[int] = []
    for entry in setting.split(","):
        index = _index_of(entry.strip(), uuids)
        if index is None:
            break
        if index in indices:
            return []
        indices.append(index)
    return indices


def _index_of(entry: str, uuids: list[str | None]) -> int | None:
    if entry.startswith("GPU-"):
        matches = [index for index, uuid in enumerate(uuids) if uuid and uuid.startswith(entry)]
        return matches[0] if len(matches) == 1 else None
    digits = re.match(r"\+?\d+", entry)
    return int(digits[0]) if digits and int(digits[0]) < len(uuids) else None


def _gpu(index: int, handle: Any) -> Gpu | None:
    """One card, or None when its memory cannot be read."""
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle) if handle is not None else None
    if memory is None:
        return None
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        name=_ask(pynvml.nvmlDeviceGetName, handle) or "unnamed NVIDIA GPU",
        origin="nvml",
        total_bytes=memory.total,
        free_bytes=memory.free,
        index=index,
        uuid=_ask(pynvml.nvmlDeviceGetUUID, handle),
        compute_capability=capability,
        bf16=capability is not None and capability >= BF16_SINCE,
        pcie=_pcie(handle),
        processes=_processes(handle),
    )


def _label(index: int, handle: Any) -> str:
    name = _ask(pynvml.nvmlDeviceGetName, handle) if handle is not None else None
    return f"GPU {index} ({name})" if name else f"GPU {index}"


def _pcie(handle: Any) -> str | None:
    """The link as it runs now: an idle card may have stepped down to a lower generation."""
    generation = _ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle)
    width = _ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle)
    return f"gen{generation} x{width}" if generation and width else None


def _processes(handle: Any) -> tuple[GpuProcess, ...]:
    """Who holds memory on the card, biggest first, those whose size the driver does not tell at the end."""
    used: dict[int, int | None] = {}
    for question in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _ask(question, handle) or []:
            # one that computes and draws is on both lists, with the same figure
            used[process.pid] = used.get(process.pid) or process.usedGpuMemory
    return tuple(
        GpuProcess(pid=pid, name=_process_name(pid), used_bytes=used_bytes)
        for pid, used_bytes in sorted(used.items(), key=lambda item: (-(item[1] or 0), item[0]))
    )


def _process_name(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, ValueError):
        return None


def _host(disk_path: Path | None) -> Host:
    ram = psutil.virtual_memory()
    limits = memory_limits()
    folder, disk_free_bytes = _disk(disk_path or Path.cwd())
    return Host(
        cpu=_cpu_name(),
        cores=_cores(),
        ram_total_bytes=min([ram.total, *(limit.limit_bytes for limit in limits)]),
        ram_available_bytes=max(0, min([ram.available, *(limit.available_bytes for limit in limits)])),
        disk_path=str(folder),
        disk_free_bytes=disk_free_bytes,
        bf16=bool(_cpu_flags() & BF16_FLAGS),
        platform=platform.platform(),
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def _cpu_flags() -> frozenset[str]:
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(wanted: str) -> str:
    """The first value of that key in Linux's /proc/cpuinfo, empty elsewhere."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted and value.strip():
            return value.strip()
    return ""


def _cores() -> int:
    """Cores this process may use: its affinity, or the container's CPU quota where that is lower. At least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([usable, *cpu_quotas()])))


def _disk(path: Path) -> tuple[Path, int]:
    """The nearest folder at or above `path` that exists, and the free bytes of its file system."""
    for folder in (path.absolute(), *path.absolute().parents):
        with suppress(OSError):
            if folder.is_dir():
                return folder, shutil.disk_usage(folder).free
    return path, 0


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
        for folder in _cgroup_folders(root, controller):
            limit, usage = _number(folder / limit_file), _number(folder / usage_file)
            if limit is not None:
                # the kernel drops idle file cache before it refuses memory
                cache = _stat(folder / "memory.stat", cache_key)
                limits.append(MemoryLimit(limit_bytes=limit, available_bytes=limit - (usage or 0) + cache))
    return limits


def cpu_quotas(root: Path = Path("/")) -> list[float]:
    """Every CPU quota that binds this process, in cores."""
    quotas = []
    for folder in _cgroup_folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _cgroup_folders(root, "cpu"):
        old_quota, old_period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if old_quota and old_period:
            quotas.append(old_quota / old_period)
    return quotas


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """This process's cgroup folder of a version 1 controller ("" for version 2), and all above it.

    In a container the path in /proc is often the host's, of which only the top is mounted: missing ones are harmless.
    """
    top = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            own = top / path.strip().lstrip("/")
            return [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
    return [top]


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _stat(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
