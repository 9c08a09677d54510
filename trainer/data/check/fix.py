"""A cleaned copy of data: the rows that can be trained, once each, as JSONL, and what was dropped and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.errors import DataError, OptionError
from autoft.home import write_lines
from autoft.trainer.data.check.examine import Checked
from autoft.trainer.data.check.report import Fixed
from autoft.trainer.data.check.scan import Verdict
from autoft.trainer.data.check.tally import place_of
from autoft.trainer.data.check.text import trimmed, visible
from autoft.trainer.data.mapping import Mapping
from autoft.trainer.data.read import RawRow
from autoft.trainer.data.shape import shape_of

# What a drop is called in the counts
REASONS = {
    Verdict.BROKEN: "broken",
    Verdict.UNTRAINABLE: "broken",
    Verdict.OTHER_SHAPE: "another shape",
    Verdict.SECRET: "holds a secret",
    Verdict.IN_EVAL: "among the held-out rows",
    Verdict.COPY: "duplicate",
    Verdict.LEFT_OUT: "not to be trained",
}
INVISIBLE, SPACE = "invisible characters removed", "white space trimmed"


def check_target(out: Path) -> None:
    """Raises: OptionError where a cleaned copy cannot be written to `out`."""
    if out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise OptionError(f"--fix {out}: the copy is JSONL", fix=f"--fix {out.with_suffix('.jsonl')}")
    for path in (out, report_path(out)):
        if path.exists():
            raise OptionError(f"--fix {path} is there already", fix="name a file that is not there yet")
    if not out.absolute().parent.is_dir():
        raise OptionError(f"--fix {out}: no such folder", fix=f"mkdir -p {out.parent}")


def report_path(out: Path) -> Path:
    """Where the report of a cleaned copy goes."""
    return out.with_name(f"{out.name}.report.json")


def write_fixed(checked: Checked, out: Path) -> Fixed:
    """Read the data once more and write `out` and its report.

    A kept row keeps its columns. In each of its texts control characters, terminal colors, zero-width characters and
    direction overrides are removed, and, unless the row is a plain text, blank lines before and white space after it.
    Raises: OptionError, DataError where no row can be kept; then nothing is written.
    """
    check_target(out)
    if not any(verdict == Verdict.KEPT for verdict in checked.scan.verdicts):
        raise DataError(f"{checked.report.data}: no row could be kept", fix="correct what the check found first")
    copy = _Copy(checked)
    write_lines(out, copy.lines())
    fixed = Fixed(
        path=str(out),
        report=str(report_path(out)),
        kept=copy.kept,
        dropped=dict(Counter(reason for _, reason, _ in copy.dropped)),
        changed=dict(copy.changed),
    )
    write_lines(report_path(out), _report(checked, fixed, copy.dropped))
    return fixed


class _Copy:
    """The lines of the copy, and after them what was left out and changed."""

    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.kept = 0
        self.dropped: list[tuple[str, str, str]] = []
        self.changed: Counter[str] = Counter()

    def lines(self) -> Iterator[str]:
        scan = self.checked.scan
        good = 0
        number = -1
        for number, raw in enumerate(scan.source(on_fault=self._unread)):
            verdict = Verdict(scan.verdicts[number]) if number < len(scan.verdicts) else None
            if verdict is None:
                break
            fields = raw.fields
            if verdict == Verdict.KEPT:
                fields, changes = _cleaned(raw, trim=scan.format != "text")
                trouble = _trouble(replace(raw, fields=fields), scan.mapping)
                if trouble is None:
                    self.kept += 1
                    self.changed.update(changes)
                    yield json.dumps(fields, ensure_ascii=False, default=str) + "\n"
                else:
                    self.dropped.append((raw.where, REASONS[Verdict.BROKEN], trouble))
            else:
                self.dropped.append((raw.where, REASONS[verdict], self._why(verdict, raw, good)))
            good += verdict not in (Verdict.BROKEN, Verdict.LEFT_OUT)
        if number + 1 != len(scan.verdicts):
            raise DataError(f"{self.checked.report.data}: changed while it was read", fix="run the check again")

    def _unread(self, error: DataError) -> None:
        where, why = place_of(error)
        self.dropped.append((where, REASONS[Verdict.BROKEN], why))

    def _why(self, verdict: Verdict, raw: RawRow, good: int) -> str:
        """good: the row's place among those with a shape."""
        scan, relations = self.checked.scan, self.checked.relations
        if verdict == Verdict.LEFT_OUT:
            return shape_of(raw, scan.mapping)[1](raw).left_out or "left out"
        if verdict == Verdict.BROKEN:
            return _trouble(raw, scan.mapping) or "broken"
        if verdict == Verdict.COPY:
            return f"says the same as {scan.places[int(relations.copy_of[good])]}"
        if verdict == Verdict.IN_EVAL:
            assert self.checked.heldout is not None
            return f"says the same as {self.checked.heldout.places[int(relations.in_eval[good])]}"
        return {
            Verdict.UNTRAINABLE: "the model's chat template refuses it, or nothing of it would be trained",
            Verdict.OTHER_SHAPE: f"its columns are not those of {scan.format}",
            Verdict.SECRET: "holds a key or token",
        }[verdict]


def _trouble(raw: RawRow, mapping: Mapping | None) -> str | None:
    """Why a row cannot be trained, None if it can."""
    try:
        shape_of(raw, mapping)[1](raw)
    except DataError as error:
        return error.what.removeprefix(f"{raw.where}: ")
    return None


def _cleaned(raw: RawRow, *, trim: bool) -> tuple[dict[str, Any], set[str]]:
    """(the row's fields with clean texts, what was changed)"""
    changes: set[str] = set()

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            seen = visible(value)
            if seen != value:
                changes.add(INVISIBLE)
            short = trimmed(seen) if trim else seen
            if short != seen:
                changes.add(SPACE)
            return short
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return value

    return {key: clean(value) for key, value in raw.fields.items()}, changes


def _report(checked: Checked, fixed: Fixed, dropped: list[tuple[str, str, str]]) -> Iterator[str]:
    """One JSON object, a dropped row a line."""
    summary = {"data": checked.report.data, "eval_data": checked.report.eval_data, **fixed.to_dict()}
    summary["dropped_by_reason"] = summary.pop("dropped")
    summary["rows"] = checked.report.rows
    yield json.dumps(summary, ensure_ascii=False, indent=2)[:-2] + ',\n  "dropped": ['
    for number, (where, reason, why) in enumerate(dropped):
        entry = json.dumps({"where": where, "reason": reason, "why": why}, ensure_ascii=False)
        yield f"{',' if number else ''}\n    {entry}"
    yield "\n  ]\n}\n" if dropped else "]\n}\n"
