"""`autoft probe`: what this machine is."""

from __future__ import annotations

import click

from autoft import render
from autoft.cli import options
from autoft.errors import OptionError
from autoft.profiles.detect import detect


@options.command("Show what this machine is: GPUs with their memory and who holds it, driver, processor, memory, disk.")
@click.option(
    "--watch", is_flag=True, help="Follow memory, power and temperature until Ctrl-C; with --json, a line each."
)
@click.option(
    "--interval", type=float, metavar="SECONDS", help="Of --watch: time from one look to the next. Default: 1."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Of --watch: end after so many looks.")
def command(watch: bool, interval: float | None, count: int | None, as_json: bool) -> None:
    if watch:
        from autoft.cli.watch import watch_gpus

        watch_gpus(1.0 if interval is None else interval, count, as_json=as_json)
        return
    if interval is not None or count is not None:
        raise OptionError("--interval and --count go with --watch", fix="autoft probe --watch, or leave them out")
    hardware = detect()
    if as_json:
        options.print_json(hardware.to_dict())
        return
    from autoft.cli.show_machine import show_machine

    show_machine(hardware, render.console())
