"""What is the computer around the GPUs? Processor, memory, swap, disks, operating system, installed stack."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from autoft.home import home
from autoft.profiles.cgroup import cpu_quotas, memory_limits, swap_limits
from autoft.profiles.files import text
from autoft.profiles.hardware import Disk, Host

# Of /proc/cpuinfo: AVX-512 and AMX on x86, the Arm extension
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# In words, by the flag of /proc/cpuinfo that stands for each
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
    "bf16": "BF16",
}
STACK = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "triton",
    "flash-attn",
    "nvidia-ml-py",
)
System = Literal["linux", "wsl2", "windows", "macos", "other"]


def read_host(disk_path: Path | None = None, root: Path = Path("/")) -> Host:
    """disk_path: where outputs will go, default the current folder; a missing path counts as its parent.

    root: where /proc and /sys are.
    """
    ram_total, ram_available = available_ram(root)
    swap_total, swap_free = _swap(root)
    outputs, outputs_free = _disk(disk_path or Path.cwd())
    flags = _cpu_flags(root)
    return Host(
        cpu=_cpu_name(root),
        cores=_cores(root),
        ram_total_bytes=ram_total,
        ram_available_bytes=ram_available,
        disk_path=str(outputs),
        disk_free_bytes=outputs_free,
        bf16=bool(flags & BF16_FLAGS),
        platform=platform.platform(),
        python=platform.python_version(),
        instruction_sets=tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags) if flags else None,
        swap_total_bytes=swap_total,
        swap_free_bytes=swap_free,
        disks=(
            _room("models", hub_cache()[0]),
            _room("cache", home()),
            Disk(use="outputs", path=str(outputs), free_bytes=outputs_free),
        ),
        system=system_of(root),
        container=container_of(root),
        versions=_versions(),
        torch_build=torch_build(),
    )


def available_ram(root: Path = Path("/")) -> tuple[int, int]:
    """(total, available) bytes of RAM now, a container's limit counted. root: where /proc and /sys are."""
    ram, limits = psutil.virtual_memory(), memory_limits(root)
    total = min([ram.total, *(limit.limit_bytes for limit in limits)])
    return total, max(0, min([ram.available, *(limit.available_bytes for limit in limits)]))


def hf_home(environ: Mapping[str, str] | None = None) -> Path:
    """Where the Hugging Face libraries keep things: HF_HOME, or huggingface in the cache folder."""
    environ = os.environ if environ is None else environ
    named = environ.get("HF_HOME")
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(named or f"{cache}/huggingface").expanduser().absolute()


def hub_cache(environ: Mapping[str, str] | None = None) -> tuple[Path, str]:
    """Where models from the hub go, HF_HUB_CACHE or hub in HF_HOME, and which setting moves that folder.

    Source: huggingface_hub's documentation, "Environment variables".
    """
    environ = os.environ if environ is None else environ
    for setting in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := environ.get(setting):
            return Path(named).expanduser().absolute(), setting
    return hf_home(environ) / "hub", "HF_HOME"


def system_of(root: Path = Path("/")) -> System:
    """WSL 2 is a Linux whose kernel says that Microsoft built it."""
    if sys.platform == "win32":
        return "windows"
    if sys.platform == "darwin":
        return "macos"
    if not sys.platform.startswith("linux"):
        return "other"
    return "wsl2" if "microsoft" in text(root / "proc/version").casefold() else "linux"


def container_of(root: Path = Path("/")) -> str | None:
    """docker, podman, kubernetes or lxc, by the marks that each leaves; None outside of one."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = text(root / "proc/self/cgroup") + text(root / "proc/1/cgroup")
    marks = {"kubepods": "kubernetes", "docker": "docker", "libpod": "podman", "lxc": "lxc"}
    return next((name for mark, name in marks.items() if mark in groups), None)


def torch_build() -> str | None:
    """What the installed PyTorch was built for, as its version.py says; nothing is imported. None: cannot be told."""
    with suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution("torch")
        version_file = text(Path(str(distribution.locate_file("torch/version.py"))))
        built = dict(re.findall(r"^(cuda|hip|xpu)\b.*=\s*'([^']+)'", version_file, re.MULTILINE))
        for key, name in (("cuda", "CUDA"), ("hip", "ROCm"), ("xpu", "XPU")):
            if key in built:
                return f"{name} {'.'.join(built[key].split('.')[:2])}"
        if version_file or "+cpu" in distribution.version:
            return "cpu"
    return None


def _versions() -> dict[str, str]:
    """Of the stack, as its metadata has them; what is not installed is left out."""
    installed = {package: installed_version(package) for package in STACK}
    return {package: version for package, version in installed.items() if version is not None}


def installed_version(package: str) -> str | None:
    """By its metadata: nothing is imported. None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name(root: Path) -> str:
    if sys.platform == "darwin":  # there platform.processor() says "arm"
        with suppress(OSError, subprocess.SubprocessError):
            words = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(words, capture_output=True, text=True, timeout=2, check=True).stdout.strip()
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine() or "unknown"


def _cpu_flags(root: Path) -> frozenset[str]:
    """Of Linux's /proc/cpuinfo; empty elsewhere."""
    return frozenset((_cpuinfo(root, "flags") or _cpuinfo(root, "Features")).split())


def _cpuinfo(root: Path, wanted: str) -> str:
    """The first value of that key in /proc/cpuinfo, empty where there is none."""
    for line in text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted and value.strip():
            return value.strip()
    return ""


def _cores(root: Path) -> int:
    """Cores this process may use: its affinity, or the container's CPU quota where that is lower. At least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([usable, *cpu_quotas(root)])))


def _swap(root: Path) -> tuple[int | None, int | None]:
    """(total, free) bytes; None where the system does not tell."""
    try:
        with warnings.catch_warnings():  # where /proc/vmstat is hidden psutil warns of figures that are not used here
            warnings.simplefilter("ignore")
            swap = psutil.swap_memory()
    except (OSError, RuntimeError, ValueError):
        return None, None
    limits = swap_limits(root)
    total = min([swap.total, *(limit.limit_bytes for limit in limits)])
    return total, max(0, min([swap.free, *(limit.available_bytes for limit in limits)]))


def _room(use: Literal["models", "cache"], path: Path) -> Disk:
    folder, free_bytes = _disk(path)
    return Disk(use=use, path=str(folder), free_bytes=free_bytes)


def _disk(path: Path) -> tuple[Path, int]:
    """The nearest folder at or above `path` that exists, and the free bytes of its file system."""
    for folder in (path.absolute(), *path.absolute().parents):
        with suppress(OSError):
            if folder.is_dir():
                return folder, shutil.disk_usage(folder).free
    return path, 0
