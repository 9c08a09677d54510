"""What a plan must know of a machine. Memory in bytes, throughput in FLOP/s and bytes/s; None means not known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoft.schema import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProcess(Record):
    """One process that holds memory on a GPU."""

    pid: int
    name: str | None = None
    used_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu(Record):
    """One GPU.

    origin: "nvml" (this machine, now), "profile" (a catalogue card, here or not) or "user" (given by hand).
    total_bytes, free_bytes: device memory. Free is what a new process could take now; for a profile it is the total.
    compute_capability: (major, minor). multiprocessors: how many the card has.
    bf16: native bfloat16 arithmetic, that is compute capability 8.0 or later. Emulation does not count.
    half_flops_per_s: dense 16-bit matrix throughput with 32-bit accumulation where the source tells.
    float32_flops_per_s: without tensor cores. tdp_w: the power the card is made for, in watts.
    """

    name: str
    origin: Literal["nvml", "profile", "user"]
    total_bytes: int
    free_bytes: int
    index: int | None = None
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    multiprocessors: int | None = None
    bf16: bool = False
    half_flops_per_s: float | None = None
    float32_flops_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    tdp_w: float | None = None
    pcie: str | None = None
    processes: tuple[GpuProcess, ...] = ()
    profile: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Host(Record):
    """The computer around the GPUs. Limits of a container (cgroup) count where they are lower.

    cores: those this process may use. bf16: the processor multiplies bfloat16 matrices natively.
    disk_path is the folder whose file system disk_free_bytes was read from.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware(Record):
    """A machine to plan for: no GPUs means that training runs on the CPU. no_gpu_reason then says why."""

    host: Host
    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    no_gpu_reason: str | None = None
