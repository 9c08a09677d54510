"""What does the NVIDIA driver say? A program of its own, because the driver may hang or crash its process.

    python nvml.py

It starts the driver's library, and for each line on stdin asks one round of questions: "all", or "moment" for what
changes. On stdout, one JSON list a line: ["ask", WHERE, FIELD] before each question, then ["is", WHERE, FIELD, VALUE]
or ["no", WHERE, FIELD, REASON], and ["end"] after a round. WHERE is "" for the driver, "0" for the GPU that nvidia-smi
shows as 0, "0.1" for its second MIG instance. A FIELD is one of hardware.py's where there is such a one.

driver.py is the other end. Nothing of autoft is imported here: it starts as quickly as can be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pynvml

Question = Callable[[Any], Any]

# What a question may end in: NVML's own answer; text that is no UTF-8; a binding older than the question; a figure that
# no C type takes; on Windows, an access violation.
FAILURES = (pynvml.NVMLError, UnicodeDecodeError, AttributeError, ValueError, TypeError, OSError)


def main() -> None:
    try:
        pynvml.nvmlInit()
    except FAILURES as error:
        missing = isinstance(error, pynvml.NVMLError_LibraryNotFound)
        say("no", "", "library" if missing else "init", why(error))
        return
    try:
        for line in sys.stdin:
            ask_round(moment=line.strip() == "moment")
            say("end")
    finally:
        with suppress(*FAILURES):
            pynvml.nvmlShutdown()


def ask_round(*, moment: bool) -> None:
    """All questions to the driver and its GPUs, or those about this moment."""
    if not moment:
        ask("", "driver_version", lambda _: pynvml.nvmlSystemGetDriverVersion())
        ask("", "cuda_driver", lambda _: pynvml.nvmlSystemGetCudaDriverVersion())
    for index in range(ask("", "count", lambda _: pynvml.nvmlDeviceGetCount()) or 0):
        where = str(index)
        card = ask(where, "handle", lambda i: pynvml.nvmlDeviceGetHandleByIndex(i), index, told=False)
        if card is None:
            continue
        for field, question in (MOMENT if moment else {**IDENTITY, **MOMENT, **SETTINGS}).items():
            ask(where, field, question, card)
        if not moment and ask(where, "mig", lambda d: bool(pynvml.nvmlDeviceGetMigMode(d)[0]), card):
            ask_instances(where, card)


def ask_instances(where: str, card: Any) -> None:
    """The MIG instances of a card: there may be fewer than the most it takes, with gaps."""
    for index in range(ask(where, "mig_most", lambda d: pynvml.nvmlDeviceGetMaxMigDeviceCount(d), card) or 0):
        with suppress(*FAILURES):
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
            for field, question in INSTANCE.items():
                ask(f"{where}.{index}", field, question, instance)


def ask(where: str, field: str, question: Question, device: Any = None, *, told: bool = True) -> Any:
    """The answer, which is also said; None where there is none, and the reason is said. told: it goes into JSON."""
    say("ask", where, field)
    try:
        answer = question(device)
    except FAILURES as error:
        say("no", where, field, why(error))
        return None
    say("is", where, field, answer if told else None)
    return answer


def say(*words: Any) -> None:
    print(json.dumps(words), flush=True)


def why(error: Exception) -> str:
    """The reason in words, as NVML has them."""
    if isinstance(error, pynvml.NVMLError):
        with suppress(*FAILURES):
            return str(error)
        return f"NVML error {error.value}"
    if isinstance(error, UnicodeDecodeError):
        return "the driver's text is not UTF-8"
    return f"{type(error).__name__}: {error}"


def first(*names: str) -> Question:
    """A question that the library knows by one of several names: the first that there is."""

    def question(device: Any) -> Any:
        for name in names[:-1]:
            with suppress(pynvml.NVMLError_FunctionNotFound, AttributeError):
                return getattr(pynvml, name)(device)
        return getattr(pynvml, names[-1])(device)

    return question


def memory(device: Any) -> list[int]:
    """[total, free, used] bytes."""
    info = pynvml.nvmlDeviceGetMemoryInfo(device)
    return [info.total, info.free, info.used]


def processes(kind: str) -> Question:
    """[[pid, bytes or None], ...]. Drivers before R510 know only the second version of the question."""
    names = [f"nvmlDeviceGet{kind}RunningProcesses{version}" for version in ("_v3", "_v2")]
    return lambda device: [[process.pid, process.usedGpuMemory] for process in first(*names)(device)]


def temperature(device: Any) -> int:
    with suppress(pynvml.NVMLError_FunctionNotFound, AttributeError):
        return int(pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU))
    return int(pynvml.nvmlDeviceGetTemperatureV(device, pynvml.NVML_TEMPERATURE_GPU))


def bus_id(device: Any) -> str:
    return words(pynvml.nvmlDeviceGetPciInfo(device).busId)


def nvlinks(device: Any) -> list[str]:
    """What each active link leads to: "NVSwitch", or a PCI bus id; "" where that is not told."""
    return list(active_links(device))


def active_links(device: Any) -> Iterator[str]:
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active = pynvml.nvmlDeviceGetNvLinkState(device, link)
        except pynvml.NVMLError_InvalidArgument:  # past the last link of this card
            return
        except pynvml.NVMLError_NotSupported:
            if link == 0:
                raise
            continue
        if active:
            yield link_end(device, link)


def link_end(device: Any, link: int) -> str:
    with suppress(*FAILURES):
        if pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(device, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            return "NVSwitch"
    with suppress(*FAILURES):
        return words(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(device, link).busId)
    return ""


def words(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


# Memory comes first: if a later question hangs, what matters most is known.
IDENTITY: dict[str, Question] = {
    "name": lambda d: pynvml.nvmlDeviceGetName(d),
    "memory": memory,
    "uuid": lambda d: pynvml.nvmlDeviceGetUUID(d),
    "compute_capability": lambda d: pynvml.nvmlDeviceGetCudaComputeCapability(d),
}
MOMENT: dict[str, Question] = {
    "memory": memory,
    "power_w": lambda d: pynvml.nvmlDeviceGetPowerUsage(d) / 1000,
    "power_limit_w": lambda d: pynvml.nvmlDeviceGetEnforcedPowerLimit(d) / 1000,
    # since the driver was loaded; from Volta on
    "energy_j": lambda d: pynvml.nvmlDeviceGetTotalEnergyConsumption(d) / 1000,
    "temperature_c": temperature,
    "busy_percent": lambda d: pynvml.nvmlDeviceGetUtilizationRates(d).gpu,
    "sm_clock_mhz": lambda d: pynvml.nvmlDeviceGetClockInfo(d, pynvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda d: pynvml.nvmlDeviceGetClockInfo(d, pynvml.NVML_CLOCK_MEM),
    # renamed in R535
    "throttle": first("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
}
SETTINGS: dict[str, Question] = {
    "compute_processes": processes("Compute"),
    "graphics_processes": processes("Graphics"),
    "pcie_bus_id": bus_id,
    "cores": lambda d: pynvml.nvmlDeviceGetNumGpuCores(d),
    "sm_clock_max_mhz": lambda d: pynvml.nvmlDeviceGetMaxClockInfo(d, pynvml.NVML_CLOCK_SM),
    "memory_clock_max_mhz": lambda d: pynvml.nvmlDeviceGetMaxClockInfo(d, pynvml.NVML_CLOCK_MEM),
    "slowdown_temperature_c": lambda d: pynvml.nvmlDeviceGetTemperatureThreshold(
        d, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    ),
    "pcie_generation": lambda d: pynvml.nvmlDeviceGetCurrPcieLinkGeneration(d),
    "pcie_width": lambda d: pynvml.nvmlDeviceGetCurrPcieLinkWidth(d),
    "pcie_max_generation": lambda d: pynvml.nvmlDeviceGetMaxPcieLinkGeneration(d),
    "pcie_max_width": lambda d: pynvml.nvmlDeviceGetMaxPcieLinkWidth(d),
    "ecc": lambda d: bool(pynvml.nvmlDeviceGetEccMode(d)[0]),
    "persistence": lambda d: bool(pynvml.nvmlDeviceGetPersistenceMode(d)),
    "display_attached": lambda d: bool(pynvml.nvmlDeviceGetDisplayMode(d)),
    "display_active": lambda d: bool(pynvml.nvmlDeviceGetDisplayActive(d)),
    "nvlinks": nvlinks,
}
if sys.platform == "win32":
    SETTINGS["driver_model"] = lambda d: ["WDDM", "TCC", "MCDM"][pynvml.nvmlDeviceGetDriverModel(d)[0]]
INSTANCE: dict[str, Question] = {
    "name": lambda d: pynvml.nvmlDeviceGetName(d),
    "memory": memory,
    "uuid": lambda d: pynvml.nvmlDeviceGetUUID(d),
    "gpu_instance": lambda d: pynvml.nvmlDeviceGetGpuInstanceId(d),
    "compute_instance": lambda d: pynvml.nvmlDeviceGetComputeInstanceId(d),
    "multiprocessors": lambda d: pynvml.nvmlDeviceGetAttributes(d).multiprocessorCount,
    "compute_processes": processes("Compute"),
    "graphics_processes": processes("Graphics"),
}


if __name__ == "__main__":
    main()
