"""Do the card, its driver and this build of torch fit together?

The rules are functions of facts, so that they can be told from any machine. `torch_facts` runs in a worker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoft.profiles.hardware import Hardware
from autoft.schema import Record
from autoft.trainer.compat.torch import ARCHITECTURES
from autoft.trainer.doctor.finding import Finding, one_line

Capability = tuple[int, int]
# Vendor of the PCI bus, and the class of display and 3D controllers
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaDevice(Record):
    """error: of a small product on it; None when the result was right."""

    name: str
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchFacts(Record):
    """cuda, hip: what torch was built for, None for neither. architectures: of its kernels ("sm_90", "compute_90").

    error: why CUDA does not start; None where it does, or where torch was not built for it.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    architectures: tuple[str, ...] = ()
    devices: tuple[CudaDevice, ...] = ()
    error: str | None = None


def torch_facts() -> dict[str, Any]:
    """TorchFacts of this process, as a dict. Starts CUDA, which may hang."""
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    facts: dict[str, Any] = {"version": torch.__version__, "cuda": cuda, "hip": hip}
    if cuda is None:
        return facts
    # get_arch_list is empty where CUDA does not start
    facts["architectures"] = (ARCHITECTURES.fetch()() or "").split()
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        facts["devices"] = [_device(index) for index in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        facts["error"] = one_line(error)
    return facts


def _device(index: int) -> dict[str, Any]:
    import torch

    name, error = torch.cuda.get_device_name(index), None
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        total = (ones @ ones).sum().item()
        if total != 64**3:
            error = f"a product of ones came out as {total:g} instead of {64**3}"
    except RuntimeError as failure:
        error = one_line(failure)
    return {"name": name, "error": error}


def cards_on_the_bus(root: Path = Path("/")) -> int:
    """NVIDIA display devices on the PCI bus, with or without a driver. 0 where the system has no such list."""
    cards = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        cards += vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS)
    return cards


def hidden(hardware: Hardware) -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU: then nobody wants one."""
    return not hardware.gpus and "CUDA_VISIBLE_DEVICES" in (hardware.no_gpu_reason or "")


def driver(hardware: Hardware, on_bus: int) -> Finding:
    """The NVIDIA driver answers and shows the cards. on_bus: NVIDIA cards on the PCI bus."""
    name, reason = "driver", hardware.no_gpu_reason or "no GPU"
    if hardware.gpus:
        cards = ", ".join(gpu.name for gpu in hardware.gpus)
        return Finding(name=name, status="ok", found=f"{hardware.driver_version or 'unknown version'}: {cards}")
    if hidden(hardware):
        return Finding(name=name, status="warning", found=reason, fix="unset CUDA_VISIBLE_DEVICES to train on the GPU")
    if on_bus:
        return Finding(
            name=name,
            status="failed",
            found=f"{on_bus} NVIDIA card{'s' if on_bus > 1 else ''} on the PCI bus, but {reason}",
            fix="install NVIDIA's driver and restart; start a container with --gpus all",
        )
    return Finding(name=name, status="skipped", found=f"{reason}: training runs on the CPU")


def torch_build(facts: TorchFacts, hardware: Hardware, on_bus: int) -> Finding:
    """Torch is built for what is here."""
    name, gpus = "torch", hardware.gpus
    built_for = f"CUDA {facts.cuda}" if facts.cuda else f"ROCm {facts.hip}" if facts.hip else "the CPU alone"
    build = f"{facts.version}, built for {built_for}"
    if facts.cuda is not None:
        return Finding(name=name, status="ok", found=build if gpus else f"{build}; no GPU is used here")
    if gpus or (on_bus and not hidden(hardware)):
        card = gpus[0].name if gpus else "an NVIDIA card"
        capability = gpus[0].compute_capability if gpus else None
        return Finding(
            name=name,
            status="failed",
            found=f"{build}, on a machine with {card}",
            fix=install_torch(_version(hardware.cuda_version), capability),
        )
    if facts.hip is not None:
        return Finding(
            name=name,
            status="warning",
            found=f"{build}: autoft is not tested on ROCm",
            fix="expect rough edges; 4-bit needs bitsandbytes for ROCm",
        )
    return Finding(name=name, status="ok", found=build)


def install_torch(driver_cuda: Capability | None, capability: Capability | None) -> str:
    """What to do to get a build that the driver runs and that has kernels for the card.

    PyTorch 2.12 and later are built for CUDA 12.6, with kernels for compute capability 5.0 to 9.0, and for 13.0 and
    later, with those for 7.5 to 12.0. Source: PyTorch's RELEASE.md, "PyTorch CUDA Support Matrix".
    """
    old_card = capability is not None and capability < (7, 5)
    new_card = capability is not None and capability >= (10, 0)
    runs_13 = driver_cuda is None or driver_cuda >= (13, 0)
    label = "cu126" if old_card or not (runs_13 or new_card) else "cu130"
    command = f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{label}"
    too_old = driver_cuda is not None and driver_cuda < ((13, 0) if new_card else (12, 0))
    return f"update the NVIDIA driver to {580 if new_card else 525} or later, then {command}" if too_old else command


def coverage(architectures: Sequence[str], capability: Capability) -> Literal["kernels", "ptx", "none"]:
    """Whether kernels of those architectures run on a card: as they are, compiled by the driver from PTX, or not.

    "sm_86" runs on its own major version from its minor on; "sm_90a" on 9.0 alone; "sm_100f" on its family, taken here
    as its major version. "compute_90" is PTX: the driver compiles it for 9.0 and everything later.
    Source: CUDA programming guide, "Compute capability", binary and PTX compatibility.
    """
    best: Literal["kernels", "ptx", "none"] = "none"
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if match is None:
            continue
        made_for = (int(match[2]), int(match[3]))
        if match[4] == "a":
            runs = made_for == capability
        else:
            runs = made_for <= capability and ((match[1] == "compute" and not match[4]) or made_for[0] == capability[0])
        if runs and match[1] == "sm":
            return "kernels"
        if runs:
            best = "ptx"
    return best


def kernels(facts: TorchFacts, hardware: Hardware) -> Finding:
    """Torch has kernels for every card."""
    name = "kernels for the card"
    cards = [(gpu.name, gpu.compute_capability) for gpu in hardware.gpus if gpu.compute_capability]
    if not cards or facts.cuda is None:
        return _not_here(name, facts, hardware)
    covered = {card: coverage(facts.architectures, capability) for card, capability in cards}
    shown = {card: f"{card} (compute capability {major}.{minor})" for card, (major, minor) in cards}
    has = f"torch {facts.version} has {', '.join(facts.architectures) or 'no kernels'}"
    for card, capability in cards:
        if covered[card] == "none":
            return Finding(
                name=name,
                status="failed",
                found=f"none for {shown[card]}: {has}",
                fix=install_torch(_version(hardware.cuda_version), capability),
            )
    for card, capability in cards:
        if covered[card] == "ptx":
            return Finding(
                name=name,
                status="warning",
                found=f"only PTX for {shown[card]}, compiled at first use, minutes long: {has}",
                fix=install_torch(_version(hardware.cuda_version), capability),
            )
    return Finding(name=name, status="ok", found=f"for {', '.join(shown.values())}")


def driver_for_cuda(facts: TorchFacts, hardware: Hardware) -> Finding:
    """The driver is new enough for the CUDA that torch was built for.

    A driver runs every CUDA of its own major version and all earlier ones; PTX only up to its own version.
    Source: CUDA compatibility guide, "Minor version compatibility".
    """
    name = "driver for this CUDA"
    built_for, runs = _version(facts.cuda), _version(hardware.cuda_version)
    if built_for is None or not hardware.gpus:
        return _not_here(name, facts, hardware)
    if runs is None:
        return Finding(
            name=name, status="warning", found="the driver does not tell its CUDA version", fix="update the driver"
        )
    versions = (
        f"driver {hardware.driver_version} runs CUDA up to {hardware.cuda_version}, torch was built for {facts.cuda}"
    )
    fix = f"update the NVIDIA driver, or {install_torch(runs, hardware.gpus[0].compute_capability)}"
    if runs[0] < built_for[0]:
        return Finding(name=name, status="failed", found=versions, fix=fix)
    needs_ptx = any(
        gpu.compute_capability and coverage(facts.architectures, gpu.compute_capability) == "ptx"
        for gpu in hardware.gpus
    )
    if runs < built_for and needs_ptx:
        return Finding(name=name, status="failed", found=f"{versions}, and this card needs its PTX", fix=fix)
    return Finding(name=name, status="ok", found=versions)


def cuda_starts(facts: TorchFacts, hardware: Hardware) -> Finding:
    """CUDA starts, and every card multiplies."""
    name = "CUDA"
    if facts.cuda is None or not hardware.gpus:
        return _not_here(name, facts, hardware)
    if facts.error is not None or not facts.devices:
        return Finding(
            name=name,
            status="failed",
            found=f"does not start: {facts.error or 'torch sees no device'}",
            fix="compare `nvidia-smi` with the lines above; after an update of the driver restart the machine",
        )
    for device in facts.devices:
        if device.error is not None:
            return Finding(
                name=name,
                status="failed",
                found=f"{device.name}: {device.error}",
                fix="free the card's memory; if it stays so, reinstall torch for this card",
            )
    return Finding(name=name, status="ok", found=f"a product is right on {_number(len(facts.devices))}")


def _number(devices: int) -> str:
    return "1 GPU" if devices == 1 else f"{devices} GPUs"


def _not_here(name: str, facts: TorchFacts, hardware: Hardware) -> Finding:
    why = "no GPU is used here" if not hardware.gpus else "torch is not built for CUDA"
    if hardware.gpus and facts.cuda is not None:
        why = "the driver does not tell the card's compute capability"
    return Finding(name=name, status="skipped", found=why)


def _version(text: str | None) -> Capability | None:
    """(12, 4) of "12.4"."""
    match = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None
