"""What is this machine? GPUs through the NVIDIA driver, the rest through the system. No torch, no pydantic."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoft.profiles.capability import features_of
from autoft.profiles.driver import Driver
from autoft.profiles.gpu_catalogue import find_gpu
from autoft.profiles.hardware import Accelerator, Gpu, Hardware, Host
from autoft.profiles.host import available_ram, read_host
from autoft.profiles.nvidia import Nvidia, moment, read_nvidia
from autoft.profiles.other_accelerators import other_accelerators

# Assumption: of memory that a GPU shares with its host, what an idle host leaves
UNIFIED_FREE = 0.85


def detect(disk_path: Path | None = None) -> Hardware:
    """This machine, read now.

    disk_path: where outputs will go, default the current folder; a missing path counts as its parent.
    Raises: OptionError when AUTOFT_DRIVER_TIMEOUT_S is no time.
    """
    with Driver() as driver:
        host = read_host(disk_path)
        answers = driver.ask("all")
    nvidia = read_nvidia(answers, host, os.environ)
    others = other_accelerators(host)
    return Hardware(
        host=host,
        gpus=nvidia.gpus,
        driver_version=nvidia.driver_version,
        cuda_version=nvidia.cuda_version,
        no_gpu_reason=None if nvidia.gpus else nvidia.reason,
        unread_gpus=nvidia.unread,
        accelerators=others,
        notes=(*nvidia.notes, *_notes(nvidia, answers.failure, host, others)),
    )


@contextmanager
def sampler(visible: str | None = None) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that looks once more at what changes, of the GPUs that `detect` finds and of the host's memory.

    visible: CUDA_VISIBLE_DEVICES, where it is to be another than that of this process.
    It gives {"gpus": [{"index", "uuid", "name", "total_bytes", "free_bytes", "used_bytes", "power_w", "power_limit_w",
    "energy_j", "temperature_c", "busy_percent", "sm_clock_mhz", "memory_clock_mhz", "throttle"}, ...],
    "no_gpu_reason", "driver_failure", "host": {"ram_total_bytes", "ram_available_bytes"}}; None is not known. Memory is
    that of a MIG instance's whole card; energy_j is drawn since the driver was loaded. After a "driver_failure" the
    driver is asked no more: only a new sampler asks it again.
    """
    environment = os.environ if visible is None else {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    with Driver() as driver:
        host = read_host()
        nvidia = read_nvidia(driver.ask("all"), host, environment)

        def look() -> dict[str, Any]:
            answers = driver.ask("moment")
            total, available = available_ram()
            gpus = [
                {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name, **moment(answers, gpu.index or 0)}
                for gpu in nvidia.gpus
            ]
            reason = None if nvidia.gpus else nvidia.reason
            return {
                "gpus": gpus,
                "no_gpu_reason": answers.failure or reason,
                "driver_failure": answers.failure,
                "host": {"ram_total_bytes": total, "ram_available_bytes": available},
            }

        yield look


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
        unified_memory=profile.unified_memory,
        features=features_of(profile.compute_capability) if profile.compute_capability else None,
    )


def _notes(found: Nvidia, failure: str | None, host: Host, others: tuple[Accelerator, ...]) -> list[str]:
    """What a plan for this machine should say. failure: why the driver did not answer to the end."""
    notes = [failure] if found.gpus and failure else []
    notes += [f"not used, its memory cannot be read: {unread}" for unread in found.unread if found.gpus]
    if found.gpus and host.system in ("windows", "wsl2"):
        where = "Windows" if host.system == "windows" else "WSL 2"
        notes.append(
            f"on {where} a run that outgrows the GPU does not fail: the driver moves it to system memory, many times "
            'slower; "Prefer No Sysmem Fallback" in the NVIDIA Control Panel makes it fail instead'
        )
    notes += [
        f"{gpu.name} shares the host's memory: its figures are the host's, and other programs take from the same; "
        "autoft has been tried on no such machine"
        for gpu in found.gpus
        if gpu.unified_memory
    ]
    if found.gpus and host.torch_build == "cpu":
        notes.append("the PyTorch installed here is built for the CPU and will not see the GPU: install its CUDA build")
    notes += [f"not used: {other.name} ({other.vendor}); that would need {other.needed}" for other in others]
    return notes
