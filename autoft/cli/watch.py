"""`autoft probe --watch`: memory, power and temperature as they go. Live on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.errors import OptionError
from autoft.profiles.detect import sampler
from autoft.units import size

SHORTEST_S = 0.1
Sample = dict[str, Any]


def watch_gpus(interval_s: float, count: int | None, *, as_json: bool) -> None:
    """Look every interval_s seconds, count times or until Ctrl-C, which is how it is meant to end.

    Raises: OptionError for an interval that is too short or no number.
    """
    if not SHORTEST_S <= interval_s <= 86_400:
        raise OptionError(
            f"--interval {interval_s:g} is not a valid interval", fix=f"give seconds from {SHORTEST_S:g} on"
        )
    console = render.console()
    try:
        with sampler() as look, _shown(console, as_json=as_json) as show:
            for sample in _samples(look, interval_s, count):
                show(sample)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader has seen enough; nothing is left to flush into
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _samples(look: Callable[[], Sample], interval_s: float, count: int | None) -> Iterator[Sample]:
    """Each look at its time: one that took long does not delay those after it."""
    began, taken = time.monotonic(), 0
    while True:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        yield {"at": now, **look()}
        taken += 1
        if taken == count:
            return
        late = (time.monotonic() - began) % interval_s
        time.sleep(interval_s - late)


@contextlib.contextmanager
def _shown(console: Console, *, as_json: bool) -> Iterator[Callable[[Sample], None]]:
    """How a sample is shown: a JSON line, a line of text, or a table that stays in its place."""
    if as_json:
        yield lambda sample: print(json.dumps(sample), flush=True)
    elif not console.is_terminal:
        yield lambda sample: console.print(_line(sample), soft_wrap=True)
    else:
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            yield lambda sample: live.update(_table(sample, console.width), refresh=True)


def _line(sample: Sample) -> Text:
    parts = [", ".join([f"GPU {gpu['index']}", *filter(None, _cells(gpu))]) for gpu in sample["gpus"]]
    host = f"host {size(sample['host']['ram_available_bytes'])} available"
    return Text("; ".join([sample["at"][11:19], *(parts or [_why(sample)]), host]))


def _table(sample: Sample, width: int) -> Table:
    """A row a GPU, and what of the columns fits."""
    names = ["Memory used", "Power", "Heat", "Busy", "Clock", "Slowed by"]
    shown = names[: 3 if width < 60 else 4 if width < 80 else len(names)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=_caption(sample), caption_justify="left")
    for name in ("GPU", *shown):
        table.add_column(name, overflow="fold")
    for gpu in sample["gpus"]:
        table.add_row(str(gpu["index"]), *(Text(cell or "unknown") for cell in _cells(gpu)[: len(shown)]))
    return table


def _caption(sample: Sample) -> Text:
    host = f"Host: {size(sample['host']['ram_available_bytes'])} of {size(sample['host']['ram_total_bytes'])} available"
    return Text(host if sample["gpus"] else f"No GPU: {_why(sample)}\n{host}")


def _why(sample: Sample) -> str:
    return sample["no_gpu_reason"] or "no GPU"


def _cells(gpu: dict[str, Any]) -> list[str]:
    """Memory, power, temperature, load, clock and what holds it back, in words; empty where unknown."""
    used, total = gpu["used_bytes"], gpu["total_bytes"]
    power, limit = gpu["power_w"], gpu["power_limit_w"]
    return [
        f"{size(used)} of {size(total)}" if used is not None and total else "",
        "" if power is None else f"{power:.0f}" + ("" if limit is None else f" of {limit:.0f}") + " W",
        "" if gpu["temperature_c"] is None else f"{gpu['temperature_c']} C",
        "" if gpu["busy_percent"] is None else f"busy {gpu['busy_percent']}%",
        "" if gpu["sm_clock_mhz"] is None else f"{gpu['sm_clock_mhz']} MHz",
        "" if gpu["throttle"] is None else "/".join(gpu["throttle"]) or "nothing",
    ]
