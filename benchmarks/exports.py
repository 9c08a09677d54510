"""Sizes and quality of every export of one run, as `autoft export` measures them, into benchmarks/results/exports.json.

    python benchmarks/exports.py RUN [KIND[:QUANT] ...]

RUN: a folder that `autoft run` wrote. Kinds are added to those in the file that are of the same run.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from autoft.trainer.runtime import environment

environment.prepare()

from autoft.trainer.export.exporter import Order  # noqa: E402
from autoft.trainer.export.exporting import export, exporter_named  # noqa: E402
from autoft.trainer.export.source import open_source  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "exports.json"
KINDS = (
    "safetensors", "nf4", "int8", "gguf:f16", "gguf:q8_0", "gguf:q6_k", "gguf:q5_k_m", "gguf:q4_k_m", "gguf:q4_0",
    "gguf-lora:f16", "vllm", "ollama:q4_k_m",
)  # fmt: skip
KEPT = ("kind", "quant", "bytes", "reference", "quality", "drift", "bound", "texts", "scored_tokens", "seconds")


def main(folder: Path, kinds: tuple[str, ...]) -> None:
    """Export each kind into a temporary folder; one that fails keeps its error in the file."""
    source = open_source(folder)
    lineage = source.lineage()
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    rows = known.get("exports", {}) if known.get("lineage", {}).get("run_sha256") == lineage["run_sha256"] else {}
    for kind in kinds:
        name, _, quant = kind.partition(":")
        exporter, chosen = exporter_named(name, quant or None)
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch, "model" if exporter.is_folder else "model.gguf")
            written = export(exporter, source, Order(out=out, quant=chosen, force=True)).to_dict()
        rows[kind] = {key: written[key] for key in KEPT}
        print(kind, rows[kind]["bytes"], rows[kind]["quality"], flush=True)
        report = {"lineage": lineage, "machine": platform.machine(), "exports": rows}
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or KINDS)
