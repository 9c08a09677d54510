"""Write the table of docs/exports.md from benchmarks/results/exports.json, which benchmarks/exports.py measures.

python docs/exports_table.py           writes it
python docs/exports_table.py --check   exits with 1 where the page has another
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "exports.md"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "exports.json"
BEGIN, END = "<!-- begin: exports_table.py -->\n", "<!-- end -->"
MIB = 2**20


def table(report: dict[str, Any]) -> str:
    """The rows in the order in which they were measured, under that of base and adapter."""
    exports: dict[str, dict[str, Any]] = report["exports"]
    reference = next(iter(exports.values()))["reference"]
    lines = [
        "| | size | mean log-prob | perplexity | mean distance |",
        "|---|---|---|---|---|",
        f"| base + adapter | | {reference['mean_logprob']:.4f} | {reference['perplexity']:.3f} | |",
    ]
    for kind, row in exports.items():
        quality, drift = row["quality"], row["drift"]
        figures = f"{quality['mean_logprob']:.4f} | {quality['perplexity']:.3f} | {drift['mean_logprob']:.4f}"
        lines.append(f"| {kind.replace(':', ' ')} | {row['bytes'] / MIB:,.0f} MiB | {figures} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the table of the results."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(json.loads(RESULTS.read_text(encoding='utf-8')))}{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
