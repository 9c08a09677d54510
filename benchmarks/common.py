"""What every benchmark writes beside its figures: the machine, the versions, the day."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.home import write_text
from autoft.profiles.detect import detect
from autoft.trainer.run.fingerprint import LIBRARIES

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, figures: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json with the figures, this machine and the versions."""
    RESULTS.mkdir(exist_ok=True)
    path = write_record(RESULTS / f"{name}.json", {**heading(name), **figures})
    print(path)
    return path


def heading(name: str) -> dict[str, Any]:
    """What was run, when, on which machine, with which versions."""
    hardware = detect()
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cpu": hardware.host.cpu,
            "cores": hardware.host.cores,
            "ram_bytes": hardware.host.ram_total_bytes,
            "gpus": [gpu.name for gpu in hardware.gpus],
            "driver": hardware.driver_version,
        },
        "versions": {"autoft": __version__, **{library: importlib.metadata.version(library) for library in LIBRARIES}},
    }


def write_rows(data: Path | None, count: int, path: Path) -> Path:
    """Every so many-th row of the data, so that lengths are as they are there. None: generated sums."""
    if data is None:
        rows = [
            {"question": f"What is {n} times {n + 3}? " * (1 + n % 5), "answer": f"It is {n * (n + 3)}. " * (2 + n % 7)}
            for n in range(count)
        ]
    else:
        lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        rows = lines[:: max(1, len(lines) // count)][:count]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_record(path: Path, record: dict[str, Any]) -> Path:
    """The record as JSON, whole or not at all."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path
