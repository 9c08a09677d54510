"""Check data: read both splits once, compare their rows, and report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoft.errors import DataError
from autoft.home import home
from autoft.trainer.data.check.example import rendered
from autoft.trainer.data.check.findings import Relations, findings_of, judge, relate
from autoft.trainer.data.check.lengths import Meter, lengths_of, meter_of
from autoft.trainer.data.check.report import Example, Lengths, Report
from autoft.trainer.data.check.scan import Progress, Scan, Verdict
from autoft.trainer.data.mapping import parse_mapping
from autoft.trainer.data.read import open_data
from autoft.trainer.job import Thinking


@dataclass(frozen=True, slots=True)
class Checked:
    """The report, and what a cleaned copy is written from."""

    report: Report
    scan: Scan
    heldout: Scan | None
    relations: Relations


def check(
    data: str,
    eval_data: str | None = None,
    model: str | None = None,
    mapping: str | None = None,
    progress: Progress = lambda _: None,
    thinking: Thinking = "auto",
) -> Checked:
    """Check the rows of `data`, and whether those of `eval_data` are among them.

    data: what `autoft plan` takes, or "starter" for the bundled task. eval_data: the same, of which its own held-out
    split is taken where it has one; without it that of data. model: with it lengths are in its tokens. mapping: which
    column is what, as --map words it.
    progress: told, now and then, how many rows of a split are read. thinking: as a Job has it, of the model's template.
    Time and memory are linear in the rows; a row costs about 250 bytes, whatever its length.
    Raises: DataError where there is nothing to read, ModelError, OptionError.
    """
    if data == "starter":
        from autoft.trainer.data.support_desk import write

        train, heldout_file = write(home() / "data")
        data, eval_data = str(train), eval_data or str(heldout_file)
    meter = meter_of(model, thinking) if model is not None else None
    columns = parse_mapping(mapping) if mapping else None
    source = open_data(data)
    given = open_data(eval_data) if eval_data is not None else None
    others = (given.heldout or given.train) if given is not None else source.heldout
    scan = Scan(source.train, meter, columns).read(progress)
    heldout = Scan(others, meter, columns, scan.sketches.common).read(progress) if others is not None else None
    relations = relate(scan, heldout)
    judge(scan, relations)
    findings = tuple(findings_of(scan, heldout, relations, own_split=eval_data is None))
    usable_rows = sum(verdict not in _UNUSABLE for verdict in scan.verdicts)
    report = Report(
        data=data,
        eval_data=eval_data or (f"{data}, its split {source.roles.heldout}" if heldout is not None else None),
        model=model,
        usable=usable_rows > 0 and not any(finding.severity == "fault" for finding in findings),
        rows=scan.rows,
        usable_rows=usable_rows,
        eval_rows=heldout.rows if heldout is not None else None,
        format=scan.format,
        format_share=scan.formats[scan.format] / scan.shaped_rows if scan.format is not None else 0.0,
        formats=scan.formats,
        lengths=_lengths(scan, meter),
        languages=dict(scan.languages.most_common()),
        findings=findings,
        example=_example(scan, meter),
    )
    return Checked(report, scan, heldout, relations)


_UNUSABLE = (Verdict.BROKEN, Verdict.UNTRAINABLE, Verdict.OTHER_SHAPE, Verdict.LEFT_OUT)


def _lengths(scan: Scan, meter: Meter | None) -> Lengths | None:
    tokens, characters, words, trained = (
        np.array(values, dtype=np.uint32) for values in (scan.tokens, scan.characters, scan.words, scan.trained)
    )
    if not tokens.any():
        return None
    whole = tokens if meter else characters
    share = float(trained.sum(dtype=np.int64) / whole.sum(dtype=np.int64))
    return lengths_of(tokens, characters, words, share, scan.places, meter)


def _example(scan: Scan, meter: Meter | None) -> Example | None:
    """A row without trouble, keys or personal data, of the shape that most rows have."""
    row = scan.examples.get(scan.format) if scan.format is not None else None
    try:
        return rendered(row, meter) if row is not None else None
    except DataError:  # told as a fault already
        return None
