"""`autoft probe`: what this machine is."""

from __future__ import annotations

import click

from autoft import render
from autoft.cli import options
from autoft.cli.bench import benches, show_bench
from autoft.errors import OptionError
from autoft.profiles.detect import detect


@options.command(
    "Show this machine: GPUs, GPU memory and its users, driver, CPU, RAM, disk.",
    examples=("autoft probe", "autoft probe --bench", "autoft probe --watch --interval 2"),
)
@click.option("--bench", is_flag=True, help="Measure speed for up to 30 s; plans then use it.")
@click.option("--seconds", type=float, metavar="S", help="Time limit of --bench (default: 30).")
@click.option("--watch", is_flag=True, help="Follow memory, power and temperature until Ctrl-C.")
@click.option("--interval", type=float, metavar="SECONDS", help="Seconds between updates of --watch (default: 1).")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop --watch after N updates.")
def command(
    bench: bool, seconds: float | None, watch: bool, interval: float | None, count: int | None, as_json: bool
) -> None:
    if watch:
        if bench or seconds is not None:
            raise OptionError("--watch does not go with --bench", fix="one after the other")
        from autoft.cli.watch import watch_gpus

        watch_gpus(1.0 if interval is None else interval, count, as_json=as_json)
        return
    if interval is not None or count is not None:
        raise OptionError("--interval and --count go with --watch", fix="autoft probe --watch, or leave them out")
    hardware = detect()
    measured = benches(hardware, measure=bench, seconds=seconds)
    if as_json:
        bench_json = {"bench": [each.to_dict() for _, each in measured]} if measured else {}
        options.print_json({**hardware.to_dict(), **bench_json})
        return
    from autoft.cli.show_machine import show_machine

    console = render.console()
    show_machine(hardware, console)
    show_bench(measured, console)
