"""The data of a Job: training and held-out rows from its files, or the bundled starter task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoft.errors import DataError
from autoft.home import home
from autoft.trainer.data.read import read_rows, split_rows
from autoft.trainer.data.shape import Row, recognise


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows to train on and rows held out. system_prompt: the one that all training conversations share, if they do."""

    train: list[Row]
    heldout: list[Row]

    @property
    def system_prompt(self) -> str | None:
        prompts = {
            row.messages[0]["content"] if row.messages and row.messages[0]["role"] == "system" else None
            for row in self.train
        }
        return prompts.pop() if len(prompts) == 1 else None


def load_data(data: str, eval_data: str | None = None, *, eval_rows: int = 100) -> Splits:
    """Read and recognise the rows.

    data: a file, or "starter" for the bundled task, which is written to AUTOFT_HOME as ordinary JSONL.
    eval_data: a file of held-out rows; without one, up to eval_rows (and a tenth) of data are held out.
    Raises: DataError.
    """
    if data == "starter":
        from autoft.trainer.data.support_desk import write

        train_file, heldout_file = write(home() / "data")
        data, eval_data = str(train_file), eval_data or str(heldout_file)
    raw = read_rows(data)
    if eval_data is None:
        rows = {row.where: row for row in recognise(raw)}
        train, heldout = ([rows[r.where] for r in side] for side in split_rows(raw, eval_rows))
        return Splits(train, heldout)
    raw_heldout = read_rows(eval_data)
    train, heldout = recognise(raw), recognise(raw_heldout)
    known = {_content(row) for row in train}
    leaked = next((row for row in heldout if _content(row) in known), None)
    if leaked is not None:
        raise DataError(
            f"{leaked.where}: this held-out row is also in {data}", fix="remove it from one of the two files"
        )
    return Splits(train, heldout[:eval_rows] if eval_rows else [])


def _content(row: Row) -> Any:
    return row.text or tuple((m["role"], m["content"]) for m in row.messages)
