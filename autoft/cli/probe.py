"""`autoft probe`: what this machine is."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from autoft import render, units
from autoft.cli import options
from autoft.cli.bench import benches, show_bench
from autoft.profiles.detect import detect
from autoft.profiles.hardware import Gpu, GpuProcess, Hardware, Host


@options.command("Show what this machine is: GPUs with their memory and who holds it, driver, processor, memory, disk.")
@click.option("--bench", is_flag=True, help="Measure what it does in a second, within 30 s; plans then use that.")
@click.option("--seconds", type=float, metavar="S", help="Of --bench: how long it may take in all. Default: 30.")
def command(bench: bool, seconds: float | None, as_json: bool) -> None:
    hardware = detect()
    found = benches(hardware, measure=bench, seconds=seconds)
    if as_json:
        told = {"bench": [each.to_dict() for _, each in found]} if found else {}
        options.print_json({**hardware.to_dict(), **told})
    else:
        console = render.console()
        _print(hardware, console)
        show_bench(found, console)


def _print(hardware: Hardware, console: Console) -> None:
    for gpu in hardware.gpus:
        console.print(Text(gpu.name if gpu.index is None else f"GPU {gpu.index}: {gpu.name}", style="bold"))
        console.print(render.facts(_gpu_facts(gpu)))
    if not hardware.gpus:
        console.print(Text("No GPU", style="bold"))
        console.print(render.facts([("Why", hardware.no_gpu_reason or "unknown"), ("So", "training runs on the CPU")]))
    if hardware.driver_version:
        console.print(Text("Driver", style="bold"))
        console.print(render.facts(_driver_facts(hardware)))
    console.print(Text("Host", style="bold"))
    console.print(render.facts(_host_facts(hardware.host)))


def _gpu_facts(gpu: Gpu) -> list[tuple[str, str]]:
    capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
    return [
        ("Memory", f"{units.size(gpu.free_bytes)} free of {units.size(gpu.total_bytes)}"),
        ("Held by", "\n".join(map(_holder, gpu.processes)) or "nobody that the driver tells of"),
        ("Compute", f"capability {capability}, bfloat16: {_yes_no(gpu)}"),
        ("PCIe", f"{gpu.pcie} now" if gpu.pcie else "unknown"),
    ]


def _yes_no(gpu: Gpu) -> str:
    if gpu.compute_capability is None:
        return "unknown"
    return "yes" if gpu.bf16 else "no"


def _holder(process: GpuProcess) -> str:
    used = "size unknown" if process.used_bytes is None else units.size(process.used_bytes)
    return f"{process.name or 'unnamed process'} (pid {process.pid}): {used}"


def _driver_facts(hardware: Hardware) -> list[tuple[str, str]]:
    facts = [("Version", hardware.driver_version or "unknown")]
    return [*facts, ("CUDA", f"up to {hardware.cuda_version}")] if hardware.cuda_version else facts


def _host_facts(host: Host) -> list[tuple[str, str]]:
    return [
        ("CPU", f"{host.cpu}, {host.cores} usable core{'s' if host.cores != 1 else ''}"),
        ("Memory", f"{units.size(host.ram_available_bytes)} available of {units.size(host.ram_total_bytes)}"),
        ("Disk", f"{units.size(host.disk_free_bytes)} free at {host.disk_path}"),
        ("System", host.platform),
        ("Python", host.python),
    ]
