"""Rows of CSV files, those that Excel writes too."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from autoft.errors import DataError
from autoft.trainer.data.files import kind
from autoft.trainer.data.lines import RawRow, lines_of

LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072
SEPARATOR = re.compile(r'"?sep=(.)"?[;,\t]*\s*', re.IGNORECASE)  # the first line, for Excel
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def csv_rows(file: Path) -> Iterator[RawRow | DataError]:
    """Rows under the names of the first line, which may follow Excel's `sep=;`.

    Cells stay text as they are written: an answer "42", "NA" or "null" is no number and no gap. Rows without any text
    are passed over, and columns without a name where they have no text either.
    """
    csv.field_size_limit(LONGEST_CELL)
    numbered = lines_of(file)
    first, before = next(numbered, ""), 0
    given = SEPARATOR.fullmatch(first)
    if given:
        first, before = next(numbered, ""), 1
    delimiter = given[1] if given else _delimiter(first, "\t" if kind(file.name) == ".tsv" else ",")
    lines = csv.reader(itertools.chain([first], numbered), strict=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(lines, [])]
        unnamed = [at for at, name in enumerate(header) if not name]
        _demand_distinct(header, file, 1 + before)
        begins = lines.line_num + 1 + before
        for cells in lines:
            where = f"{file}:{begins}"
            begins = lines.line_num + 1 + before
            if not any(cells):
                continue
            if len(cells) > len(header) and not any(cells[len(header) :]):
                del cells[len(header) :]
            if len(cells) != len(header):
                name = NAMES.get(delimiter, repr(delimiter))
                yield DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}",
                    fix=f'put cells that hold a {name} in quotes: "a{delimiter} b"',
                )
            elif unnamed:
                yield _without_unnamed(header, cells, unnamed, where)
            else:
                yield RawRow(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:  # where a quote is open, nothing after it can be told apart
        reason = "a quoted text that does not end" if "unexpected end" in str(error) else error
        yield DataError(f"{file}:{lines.line_num + before}: not CSV: {reason}", fix="check the quotes of that row")


def _delimiter(header: str, usual: str) -> str:
    return usual if usual in header else next((other for other in (";", "\t", "|") if other in header), usual)


def _without_unnamed(header: list[str], cells: list[str], unnamed: list[int], where: str) -> RawRow | DataError:
    """The row's named cells; the first column, which pandas leaves without a name, is called "index"."""
    fields = {name: cell for name, cell in zip(header, cells, strict=True) if name}
    filled = [at for at in unnamed if cells[at]]
    if filled == [0] and "index" not in fields:
        return RawRow({"index": cells[0], **fields}, where)
    if filled:
        return DataError(f"{where}: column {filled[0] + 1} has text, but no name", fix="give every column a name")
    return RawRow(fields, where)


def _demand_distinct(header: list[str], file: Path, line: int) -> None:
    twice = next((name for at, name in enumerate(header) if name and name in header[:at]), None)
    if twice is not None:
        raise DataError(f"{file}:{line}: two columns are called {twice!r}", fix="give every column a name of its own")
