"""What a plan must know of a machine, and what a person asks of it.

Memory in bytes, throughput in FLOP/s and bytes/s, clocks in MHz, power in W, temperature in degrees Celsius. None means
not known; why not is in `Gpu.unknown`, by the name of the field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from autoft.schema import Record


def in_words(field_name: str) -> str:
    """A field as people say it, without its unit: "power limit" is power_limit_w."""
    return re.sub(r"_(w|c|mhz|percent)$", "", field_name).replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProcess(Record):
    """One process that holds memory on a GPU.

    kind: on which of the driver's lists it is. desktop: part of the desktop (display server, compositor, browser, ...).
    """

    pid: int
    name: str | None = None
    user: str | None = None
    used_bytes: int | None = None
    kind: Literal["compute", "graphics", "both"] | None = None
    desktop: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MigInstance(Record):
    """A part of a GPU in MIG mode. visible: CUDA shows it to this process."""

    uuid: str | None
    name: str | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    visible: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuStatus(Record):
    """A GPU at one moment, and how it is set up. No estimate depends on it.

    power_limit_w: the limit in force. throttle: what holds the clocks back now, in words; () is nothing.
    slowdown_temperature_c: where the card begins to slow down. busy_percent: of the time, with any kernel at all.
    pcie_*: the link now (an idle card may have stepped down) and the most that card and slot do together.
    nvlink_active: links that are up. nvlink_peers: what they lead to, "NVSwitch" or "GPU 1", each once.
    driver_model: on Windows, WDDM, TCC or MCDM. display_attached: a screen is plugged in. display_active: it is in use.
    """

    busy_percent: int | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    slowdown_temperature_c: int | None = None
    throttle: tuple[str, ...] | None = None
    ecc: bool | None = None
    mig: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_max_generation: int | None = None
    pcie_max_width: int | None = None
    pcie_bus_id: str | None = None
    nvlink_active: int | None = None
    nvlink_peers: tuple[str, ...] = ()
    display_attached: bool | None = None
    display_active: bool | None = None
    persistence: bool | None = None
    driver_model: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Features(Record):
    """What follows from a compute capability; the rules and their sources are in capability.py.

    bf16: "native", "emulated" (correct and slow) or "no". Of bitsandbytes: whether it has kernels for the card.
    """

    architecture: str
    bf16: Literal["native", "emulated", "no"]
    fp8: bool
    flash_attention_2: bool
    bitsandbytes_4bit: bool
    bitsandbytes_int8: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu(Record):
    """One GPU, or one MIG instance of it.

    origin: "nvml" (this machine, now), "system" (this machine, told by the operating system because NVML does not),
    "profile" (a catalogue card, here or not) or "user" (given by hand).
    total_bytes, free_bytes: device memory. Free is what a new process could take now; for a profile it is the total.
    With unified_memory both are the host's, which the GPU shares.
    index: nvidia-smi's. compute_capability: (major, minor). multiprocessors: how many the card has.
    bf16: native bfloat16 arithmetic, that is compute capability 8.0 or later. Emulation does not count.
    half_flops_per_s: dense 16-bit matrix throughput with 32-bit accumulation where the source tells.
    float32_flops_per_s: without tensor cores. tdp_w: the power the card is made for, in watts.
    pcie: the link as it runs now, in words. desktop_bytes: what the desktop's processes hold together.
    unknown: why a field of this record or of `status` is None, by the field's name.
    """

    name: str
    origin: Literal["nvml", "system", "profile", "user"]
    total_bytes: int
    free_bytes: int
    used_bytes: int | None = None
    index: int | None = None
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    multiprocessors: int | None = None
    bf16: bool = False
    half_flops_per_s: float | None = None
    float32_flops_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    tdp_w: float | None = None
    unified_memory: bool = False
    pcie: str | None = None
    processes: tuple[GpuProcess, ...] = ()
    desktop_bytes: int | None = None
    profile: str | None = None
    features: Features | None = None
    status: GpuStatus | None = None
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator(Record):
    """A device that could train and that autoft does not train on.

    works: what can be done on this machine today. needed: what training on the device would take.
    """

    vendor: Literal["AMD", "Intel", "Apple", "Google"]
    name: str
    works: str
    needed: str
    driver: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk(Record):
    """Room where something will be written. path: the nearest folder at or above it that exists."""

    use: Literal["models", "cache", "outputs"]
    path: str
    free_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Host(Record):
    """The computer around the GPUs. Limits of a container (cgroup) count where they are lower.

    cores: those this process may use. bf16: the processor multiplies bfloat16 matrices natively.
    instruction_sets: those of AVX2, AVX-512, AMX and their Arm counterparts that it has; None where that was not told.
    disk_path is the folder whose file system disk_free_bytes was read from; disks has all the places that matter.
    system: what it runs on. container: its kind, None outside of one.
    versions: of the stack as installed, by package. torch_build: "cpu", "CUDA 12.8", "ROCm 6.4" or "XPU".
    """

    cpu: str
    cores: int
    ram_total_bytes: int
    ram_available_bytes: int
    disk_path: str
    disk_free_bytes: int
    bf16: bool = False
    platform: str = ""
    python: str = ""
    instruction_sets: tuple[str, ...] | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    disks: tuple[Disk, ...] = ()
    system: Literal["linux", "wsl2", "windows", "macos", "other"] = "other"
    container: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    torch_build: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware(Record):
    """A machine to plan for: no GPUs means that training runs on the CPU. no_gpu_reason then says why.

    gpus: in the order in which CUDA numbers them for this process. unread_gpus: those whose memory could not be read,
    each with the reason. accelerators: what else is here that could train, which autoft does not use.
    notes: what a plan for this machine should say, one sentence each.
    """

    host: Host
    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    no_gpu_reason: str | None = None
    unread_gpus: tuple[str, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    notes: tuple[str, ...] = ()
