"""What `autoft probe --bench` shows. planner/timing/microbench.py measures, profiles/bench_store.py keeps."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from autoft import render
from autoft.errors import AutoftError, OptionError, OutputError
from autoft.profiles.bench_store import BYTES, Bench, Reading, cpu_key, folder, gpu_key, keep, kept
from autoft.profiles.hardware import Gpu, Hardware

LEAST_S = 1.0
# What there is to show, in the order shown: of a Reading's `what`, and how a person calls it
ROWS = {
    "product": "Product",
    "attention": "Attention",
    "4-bit product": "4-bit product",
    "unpack": "4-bit unpack",
    "copy": "Copy",
    "memory": "Elementwise",
    "new pages": "New memory",
    "adamw": "AdamW step",
    "to device": "To the GPU",
    "from device": "From the GPU",
    "disk read": "Disk read",
    "disk write": "Disk write",
}


def benches(hardware: Hardware, *, measure: bool, seconds: float | None) -> list[tuple[Gpu | None, Bench]]:
    """The bench of each GPU, or of the CPU (None) where it is what trains; those kept, or measured anew and kept.

    measure: anew, for `seconds`; else only those kept are looked for.
    Raises: OptionError for too little time or for time without a measurement, OutputError where AUTOFT_HOME cannot be
        written to, AutoftError where nothing can be measured.
    """
    if measure:
        return _measured(hardware, seconds)
    if seconds is not None:
        raise OptionError("--seconds goes with --bench", fix="autoft probe --bench, or leave it out")
    gpus = [(gpu, kept(gpu_key(gpu, hardware.driver_version))) for gpu in hardware.gpus]
    measured: list[tuple[Gpu | None, Bench]] = [(gpu, bench) for gpu, bench in gpus if bench]
    cpu = kept(cpu_key(hardware.host))
    return [*measured, (None, cpu)] if cpu else measured


def _measured(hardware: Hardware, seconds: float | None) -> list[tuple[Gpu | None, Bench]]:
    if seconds is not None and seconds < LEAST_S:
        raise OptionError(f"--seconds {seconds:g} is too short to measure anything", fix="leave it out: 30 are enough")
    from autoft.planner.timing.microbench import BUDGET_S, measure

    seconds = BUDGET_S if seconds is None else seconds

    with _told_of_a_folder_that_cannot_be_written_to():
        folder().mkdir(parents=True, exist_ok=True)
    with render.console(stderr=True).status("measuring", spinner="line") as status:
        tell: Callable[[str], None] = lambda what: status.update(f"measuring: {what}")  # noqa: E731
        measured = measure(seconds, tell)
    if not measured:
        raise AutoftError(
            f"nothing could be measured within {seconds:.0f} s",
            fix="run it again, now that libraries are in the cache; if it stays so: autoft doctor",
        )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    benches: list[tuple[Gpu | None, Bench]] = []
    for number, one in enumerate(measured):
        gpu = None if one.name is None else _card(hardware, one.uuid, number)
        key = cpu_key(hardware.host) if one.name is None else gpu_key(gpu, hardware.driver_version) if gpu else None
        if key is None:
            raise AutoftError(f"torch sees {one.name}, but NVML does not list it", fix="autoft doctor")
        bench = Bench(key=key, date=today, readings=one.readings, left_out=one.left_out)
        with _told_of_a_folder_that_cannot_be_written_to():
            keep(bench)
        benches.append((gpu, bench))
    return benches


@contextmanager
def _told_of_a_folder_that_cannot_be_written_to() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder()}: {error.strerror or error}", fix="set AUTOFT_HOME to a folder that can be written to"
        ) from None


def _card(hardware: Hardware, uuid: str | None, number: int) -> Gpu | None:
    """The card that torch calls so; by its place in the list where torch tells no UUID that NVML knows."""
    for gpu in hardware.gpus:
        if uuid and gpu.uuid and gpu.uuid.endswith(uuid):
            return gpu
    return hardware.gpus[number] if number < len(hardware.gpus) else None


def show_bench(found: list[tuple[Gpu | None, Bench]], console: Console) -> None:
    """Each bench beside the data sheet of its card."""
    for gpu, bench in found:
        name = "CPU" if gpu is None else gpu.name if gpu.index is None else f"GPU {gpu.index}"
        console.print(Text(f"Bench of {name}, measured on {bench.date}", style="bold"))
        sheet = _data_sheet(gpu)
        rows = [
            (label, "\n".join(_lines(bench, what, sheet)))
            for what, label in ROWS.items()
            if any(reading.what == what for reading in bench.readings)
        ]
        rows += [("Left out", "\n".join(bench.left_out))] if bench.left_out else []
        unsteady = sorted({reading.what for reading in bench.readings if reading.unsteady})
        rows += [("Unsteady", f"{', '.join(unsteady)}: is something else at work? Measure again")] if unsteady else []
        console.print(render.facts(rows))


def _lines(bench: Bench, what: str, sheet: dict[tuple[str, str], float]) -> list[str]:
    """A line for each dtype or way: its slowest to its quickest shape, and what the data sheet has."""
    groups: dict[tuple[str, str], list[Reading]] = {}
    for reading in bench.readings:
        if reading.what == what:
            groups.setdefault((reading.dtype, reading.note), []).append(reading)
    lines = []
    for (dtype, note), readings in groups.items():
        least, most = (figure([reading.median for reading in readings]) for figure in (min, max))
        unit = readings[0].unit
        amount = (
            rate(most, unit) if rate(least, unit) == rate(most, unit) else f"{rate(least, unit)} to {rate(most, unit)}"
        )
        known = sheet.get((what, dtype))
        words = [
            f"{dtype} {amount}".strip(),
            *([f"data sheet {rate(known, unit)} ({most / known:.0%})"] if known else []),
        ]
        lines.append(", ".join([*words, *([note] if note else [])]))
    return lines


def _data_sheet(gpu: Gpu | None) -> dict[tuple[str, str], float]:
    if gpu is None:
        return {}
    from autoft.planner.estimator.target import with_data_sheet

    known = with_data_sheet(gpu)
    half, single, memory = known.half_flops_per_s, known.float32_flops_per_s, known.memory_bytes_per_s
    figures = {
        ("product", "float16"): half,
        ("product", "bfloat16"): half if known.bf16 else single,
        ("product", "float32"): single,
        ("copy", ""): memory,
    }
    return {key: figure for key, figure in figures.items() if figure}


def rate(per_s: float, unit: str) -> str:
    """312 TFLOP/s, 84 GFLOP/s, 3.35 TB/s, 940 GB/s, 402 MB/s: powers of ten, as data sheets have them."""
    size, prefix = next(((s, p) for s, p in ((1e12, "T"), (1e9, "G")) if per_s >= s), (1e6, "M"))
    value = per_s / size
    return f"{value:.0f} {prefix}{_unit(unit)}" if value >= 100 else f"{value:.3g} {prefix}{_unit(unit)}"


def _unit(unit: str) -> str:
    return "B/s" if unit == BYTES else unit
