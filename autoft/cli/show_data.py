"""A check of data for people, in one screen: what it is, what is wrong, and one row as the model sees it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autoft.render import facts
from autoft.trainer.data.check.report import Example, Finding, Fixed, Lengths, Report, Severity
from autoft.units import count

SECTIONS: dict[Severity, tuple[str, str]] = {
    "fault": ("Errors that stop a run or spoil what it learns", "bold red"),
    "warning": ("Warnings", "yellow"),
    "note": ("Notes", "dim"),
}
WIDEST_BAR = 40
SHOWN_LANGUAGES = 5
LONGEST_SEGMENT = 500  # characters of the example; what is longer is shown by its ends


def show_report(report: Report, console: Console) -> None:
    """Everything but what --json tells beside it: all formats, places in full, lengths in words."""
    report = _shortened(report)
    not_ready = ("not ready: errors would stop a run or spoil it", "bold red")
    verdict = ("ready to train", "bold green") if report.usable else not_ready
    console.print(Text.assemble((report.data, "bold"), ": ", verdict))
    console.print(facts(_facts(report)))
    if report.lengths is not None:
        _show_lengths(report.lengths, report.format == "text", console)
    for severity, (title, style) in SECTIONS.items():
        findings = report.of(severity)
        if findings:
            console.print(Text(title, style=style))
            for finding, following in itertools.zip_longest(findings, findings[1:]):
                _show_finding(finding, console, with_fix=following is None or following.fix != finding.fix)
    if report.example is not None:
        _show_example(report.example, console)
    if report.fixed is not None:
        _show_fixed(report.fixed, console)


def _facts(report: Report) -> list[tuple[str, str]]:
    heldout = f", and {report.eval_rows:,} held out" if report.eval_rows is not None else ""
    rows = [("Rows", f"{report.rows:,} ({report.usable_rows:,} usable){heldout}")]
    if report.format is not None:
        others = ", ".join(
            f"{name} {_share(rows / report.rows)}" for name, rows in report.formats.items() if name != report.format
        )
        format_share = f"{report.format}, {_share(report.format_share)} of rows"
        rows.append(("Format", f"{format_share}; {others}" if others else format_share))
    if report.languages:
        total = sum(report.languages.values())
        first = list(report.languages.items())[:SHOWN_LANGUAGES]
        rows.append(("Language", ", ".join(f"{name} {_share(n / total)}" for name, n in first)))
    return rows


def _show_lengths(lengths: Lengths, text: bool, console: Console) -> None:
    tokens = lengths.tokens
    source = ", estimated from bytes: --model M counts them" if lengths.estimated else ""
    spread = ", ".join(f"{value:,} ({percent}%)" for percent, value in tokens.percentiles.items())
    characters = lengths.characters
    longer = ", ".join(f"{limit.rows:,} over {limit.tokens:,}" for limit in lengths.truncated)
    what = "tokens" if not lengths.estimated else "characters"
    rows = [
        ("Tokens", f"{count(tokens.total)}{source}"),
        ("Per row", f"{tokens.shortest:,} to {tokens.longest:,}; {spread}"),
        ("Too long", f"{longer}{' (cut in pieces)' if text else ''}"),
        ("Longest", ", ".join(f"{place.where} ({place.length:,})" for place in lengths.longest)),
        ("Trained", f"{_share(lengths.trained_share)} of {what}"),
        ("Text", f"{count(characters.total)} characters, {count(lengths.words.total)} words"),
    ]
    if lengths.context is not None:
        rows.insert(2, ("Context", f"{lengths.context:,} tokens"))
    console.print(facts(rows))
    console.print(_histogram(lengths, console.width))


def _histogram(lengths: Lengths, width: int) -> Table:
    most = max(bin_.rows for bin_ in lengths.histogram)
    names = [f"{bin_.start:,} to {bin_.end - 1:,}" for bin_ in lengths.histogram]
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    counts = [f"{bin_.rows:,}" for bin_ in lengths.histogram]
    room = min(WIDEST_BAR, width - max(map(len, names)) - max(map(len, counts)) - 6)
    for name, rows, bin_ in zip(names, counts, lengths.histogram, strict=True):
        length = round(room * bin_.rows / most)
        table.add_row(f"  {name}", rows, Text("█" * length if bin_.rows and length else "▏" * bool(bin_.rows), "cyan"))
    return table


def _show_finding(finding: Finding, console: Console, *, with_fix: bool) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=8, no_wrap=True)
    table.add_column(overflow="fold")
    text = Text(finding.what)
    if finding.places:
        more = finding.rows - len(finding.places)
        places = ", ".join(finding.places) + (f" and {more:,} more" if more > 0 else "")
        text.append(f"\n{places}", style="dim")
    if finding.fix and with_fix:
        text.append(f"\nTo fix: {finding.fix}", style="dim")
    table.add_row(f"{finding.rows:,}" if finding.rows else "-", text)
    console.print(table)


def _shortened(report: Report) -> Report:
    """The report with places that do not name the folders that its data is in."""
    folders = {f"{Path(path).parent}/" for path in (report.data, report.eval_data) if path and "/" in path}

    def short(place: str) -> str:
        for folder in folders:
            place = place.replace(folder, "")
        return place

    lengths, example = report.lengths, report.example
    return replace(
        report,
        findings=tuple(replace(each, places=tuple(map(short, each.places))) for each in report.findings),
        lengths=lengths
        and replace(lengths, longest=tuple(replace(each, where=short(each.where)) for each in lengths.longest)),
        example=example and replace(example, where=short(example.where)),
    )


def _show_example(example: Example, console: Console) -> None:
    """Trained pieces in color where there is color, else «between marks»."""
    colored = console.is_terminal and not console.no_color
    text = Text()
    for segment in example.segments:
        piece = segment.text
        if len(piece) > LONGEST_SEGMENT:
            half = LONGEST_SEGMENT // 2
            piece = f"{piece[:half]} ... {piece[-half:]}"
        if segment.trained and not colored:
            piece = f"«{piece}»"
        text.append(piece, style="bold green" if segment.trained else "")
    marked = "green" if colored else "«marked»"
    template = {"model": "under the model's chat template", "none": "--model M renders it"}
    how = template.get(example.template, f"under a supplied chat template ({example.template})")
    title = f"{example.where}, {how}; trained is {marked}"
    console.print(Text("One row as the model sees it", style="bold"))
    console.print(Text(f"  {title}", style="dim"))
    console.print(Panel(text))


def _show_fixed(fixed: Fixed, console: Console) -> None:
    def told(counts: dict[str, int]) -> str:
        return ", ".join(f"{rows:,} {what}" for what, rows in counts.items()) or "none"

    console.print(Text(f"Cleaned copy: {fixed.path}", style="bold"))
    rows = [
        ("Kept", f"{fixed.kept:,} rows"),
        ("Dropped", told(fixed.dropped)),
        ("Changed", told(fixed.changed)),
        ("Report", fixed.report),
    ]
    console.print(facts(rows))


def _share(share: float) -> str:
    """100%, 12%, 0.4%; never a 100% or a 0% that is not quite so."""
    percent = 100 * share
    if percent in (0, 100) or 1 <= percent <= 99:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%" if 0.1 <= percent <= 99.9 else "under 0.1%" if percent < 1 else "over 99.9%"
