"""Check data: read both splits once, compare their rows, and report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from autoft.errors import DataError
from autoft.home import home
from autoft.trainer.data.check.example import rendered
from autoft.trainer.data.check.findings import Relations, findings_of, judge, relate
from autoft.trainer.data.check.lengths import Meter, lengths_of, meter_of
from autoft.trainer.data.check.report import Example, Lengths, Report
from autoft.trainer.data.check.scan import Progress, Scan, Verdict
from autoft.trainer.data.read import stream_rows


@dataclass(frozen=True, slots=True)
class Checked:
    """The report, and what a cleaned copy is written from."""

    report: Report
    scan: Scan
    heldout: Scan | None
    relations: Relations


def check(
    data: str, eval_data: str | None = None, model: str | None = None, progress: Progress = lambda _: None
) -> Checked:
    """Check the rows of `data`, and whether those of `eval_data` are among them.

    data: a file, or "starter" for the bundled task. model: as for `autoft plan`; with it lengths are in its tokens.
    progress: told, now and then, how many rows of a split are read.
    Time and memory are linear in the rows; a row costs about 250 bytes, whatever its length.
    Raises: DataError where there is nothing to read, ModelError.
    """
    if data == "starter":
        from autoft.trainer.data.support_desk import write

        train, heldout_file = write(home() / "data")
        data, eval_data = str(train), eval_data or str(heldout_file)
    meter = meter_of(model) if model is not None else None
    scan = Scan(partial(stream_rows, data), meter).read(progress)
    heldout = None
    if eval_data is not None:
        heldout = Scan(partial(stream_rows, eval_data), meter, scan.sketches.common).read(progress)
    relations = relate(scan, heldout)
    judge(scan, relations)
    findings = tuple(findings_of(scan, heldout, relations))
    usable_rows = sum(verdict not in _UNUSABLE for verdict in scan.verdicts)
    report = Report(
        data=data,
        eval_data=eval_data,
        model=model,
        usable=usable_rows > 0 and not any(finding.severity == "fault" for finding in findings),
        rows=scan.rows,
        usable_rows=usable_rows,
        eval_rows=heldout.rows if heldout is not None else None,
        format=scan.format,
        format_share=scan.formats[scan.format] / scan.rows if scan.format is not None else 0.0,
        formats=scan.formats,
        lengths=_lengths(scan, meter),
        languages=dict(scan.languages.most_common()),
        findings=findings,
        example=_example(scan, meter),
    )
    return Checked(report, scan, heldout, relations)


_UNUSABLE = (Verdict.BROKEN, Verdict.UNTRAINABLE, Verdict.OTHER_SHAPE)


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
