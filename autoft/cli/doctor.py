"""`autoft doctor`: what would ruin an evening, found before it does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.cli import options

if TYPE_CHECKING:
    from autoft.trainer.doctor.finding import Finding, Status

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


@options.command(
    "Check your setup: driver, PyTorch, CUDA kernels, versions, disk, Hugging Face access.\n\n"
    "Each check is a real operation, and each failure has a fix. Exits with 1 if a check failed.",
    examples=("autoft doctor", "autoft doctor --offline", "autoft doctor --json"),
)
def command(as_json: bool) -> int:
    from autoft.profiles.detect import detect
    from autoft.trainer.doctor import examine

    console = render.console(stderr=as_json)
    findings = []
    with console.status("checking", spinner="line"):
        for finding in examine(detect()):
            findings.append(finding)
            if not as_json:
                console.print(line(finding))
    counts = Counter(finding.status for finding in findings)
    healthy = not counts["failed"]
    if as_json:
        tally = {status: counts[status] for status in STYLES}
        options.print_json({"healthy": healthy, "counts": tally, "findings": [each.to_dict() for each in findings]})
    else:
        words = ", ".join(f"{counts[status]} {status}" for status in STYLES if counts[status])
        console.print(Text(f"{'Nothing failed' if healthy else 'Something failed'}: {words}", style="bold"))
    return 0 if healthy else 1


def line(finding: Finding) -> Table:
    """The status in its word and color, what was found, and below it what to do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=7, no_wrap=True)
    table.add_column(overflow="fold")
    text = Text.assemble((finding.name, "bold"), ": ", finding.found)
    if finding.fix:
        text.append(f"\nTo fix: {finding.fix}")
    table.add_row(Text(finding.status, style=STYLES[finding.status]), text)
    return table
