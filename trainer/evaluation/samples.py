"""Held-out conversations to show beside the figures: what training changed, and what it did not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autoft.trainer.data.shape import Row
from autoft.trainer.evaluation.metrics import right
from autoft.trainer.result import Sample

MOST = 5


def content(row: Row) -> str:
    """The last answer as the data has it."""
    return str(row.messages[-1]["content"])


def samples(
    rows: Sequence[Row], before: Sequence[str], after: Sequence[str], expected: Callable[[Row], str] = content
) -> tuple[Sample, ...]:
    """Up to five: those that went from wrong to right first, then one that is still wrong, then others, in their order.

    before, after: the answers of `evaluate` to these rows; without them there are no samples. expected: that which
    a row is to have. The choice flatters: the figures tell how often what holds.
    """
    if not before or not after:
        return ()
    talks = [row for row in rows if row.messages]
    every = [
        Sample(
            prompt=row.messages[-2]["content"] if len(row.messages) > 1 else "",
            expected=expected(row),
            before=was,
            after=now,
        )
        for row, was, now in zip(talks, before, after, strict=True)
    ]
    known = [sample for sample in every if sample.before or sample.after] or every
    mended = [s for s in known if not right(s.expected, s.before) and right(s.expected, s.after)]
    wrong = [s for s in known if not right(s.expected, s.after)]
    chosen = [*mended[: MOST - 1], *wrong[:1]]
    others = [s for s in known if not any(s is taken for taken in chosen)]
    return tuple((chosen + others)[:MOST])
