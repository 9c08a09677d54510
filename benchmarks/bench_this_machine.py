"""What this machine does in a second, as `autoft probe --bench` measures it, for others to compare with.

    python benchmarks/bench_this_machine.py

Writes benchmarks/results/bench_DEVICE.json for each GPU, or for the CPU of a machine without one.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from common import write_results

from autoft.planner.timing.microbench import Measured, measure
from autoft.profiles.detect import detect

SECONDS = 60.0  # twice what `autoft probe --bench` takes


def main() -> None:
    found = measure(SECONDS, lambda what: print(what, file=sys.stderr))
    for one in found:
        name = one.name or detect().host.cpu
        write_results(f"bench_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}", _record(one))
    if not found:
        sys.exit("nothing could be measured")


def _record(one: Measured) -> dict[str, Any]:
    """Without the card's UUID, which is nobody's business."""
    readings = [reading.to_dict() for reading in one.readings]
    return {"device": one.name or "cpu", "readings": readings, "left_out": list(one.left_out)}


if __name__ == "__main__":
    main()
