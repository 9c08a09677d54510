"""`autoft profiles`: the GPUs and models that autoft knows by name."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft import render, units
from autoft.cli import options
from autoft.profiles.catalogue import Figure
from autoft.profiles.gpu_catalogue import GpuProfile, gpu_profiles
from autoft.profiles.model_catalogue import ModelProfile, model_profiles

KINDS = ("gpus", "models")
WIDE = 60


@options.command("List the GPUs and models that autoft knows by name. --json adds where each figure comes from.")
@click.argument("kind", type=options.Choice(KINDS), required=False)
def command(kind: str | None, as_json: bool) -> None:
    kinds = (kind,) if kind else KINDS
    if as_json:
        options.print_json({kind: _as_dicts(kind) for kind in kinds})
        return
    console = render.console()
    if "gpus" in kinds:
        console.print(_gpu_table(list(gpu_profiles().values()), wide=console.width >= WIDE))
    if "models" in kinds:
        _print_models(list(model_profiles().values()), console)


def _as_dicts(kind: str) -> list[dict[str, Any]]:
    profiles = gpu_profiles() if kind == "gpus" else model_profiles()
    return [profile.to_dict() for profile in profiles.values()]


def _gpu_table(profiles: list[GpuProfile], *, wide: bool) -> Table:
    """TFLOP/s are dense 16-bit ones; a narrow terminal goes without the last columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1) if wide else (0, 1, 0, 0))
    table.add_column("GPU", overflow="fold")
    for name in ("Memory", "TFLOP/s", "GB/s") + (("Power", "Capability") if wide else ()):
        table.add_column(name, justify="right")
    for gpu in profiles:
        cells = [
            gpu.name,
            units.size(gpu.memory_bytes),
            _scaled(gpu.half_flops_per_s, 1e12),
            _scaled(gpu.memory_bytes_per_s, 1e9),
        ]
        if wide:
            cells += [f"{_scaled(gpu.tdp_w, 1)} W" if gpu.tdp_w else "", ".".join(map(str, gpu.compute_capability))]
        table.add_row(*map(Text, cells))
    return table


def _scaled(figure: Figure | None, unit: float) -> str:
    return f"{figure.value / unit:.4g}" if figure else ""


def _print_models(profiles: list[ModelProfile], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("Model", "Hub id", "Licence"):
        table.add_column(name, overflow="fold")
    for model in profiles:
        table.add_row(Text(model.name), Text(model.hub_id), Text(model.licence + (", gated" if model.gated else "")))
    console.print(table)
