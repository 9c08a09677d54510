"""Rows from wherever data is: files, folders and globs, the hub. Every row remembers where it came from.

What is read one row after the other takes no more memory than its longest row; a .json list is read whole, Parquet a
row group at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from autoft.errors import DataError
from autoft.trainer.data.files import KINDS_HELP, PACKED, TABLES, TEXTS, find, kind, roles
from autoft.trainer.data.json_rows import json_rows, rows_of_splits, splits_of
from autoft.trainer.data.lines import RawRow, lines_of, refuse_impostor
from autoft.trainer.data.opened import Data, OnFault, Start
from autoft.trainer.data.sheets import csv_rows

__all__ = ["COLUMNAR", "Data", "RawRow", "Start", "open_data", "read_rows", "stream_rows"]

PASSAGE_CHARACTERS = 8000  # of a plain text in one row: some 2,000 tokens
COLUMNAR = (".parquet", ".arrow", ".feather")


def read_rows(path: str) -> list[RawRow]:
    """Every row of `path`. Raises: as stream_rows."""
    return list(stream_rows(path))


def stream_rows(path: str, *, on_fault: OnFault | None = None) -> Iterator[RawRow]:
    """The rows of `path` to train on, one after the other.

    on_fault: told of a line that is no row (file:line); reading then goes on with the next one.
    Raises: DataError as open_data; for an empty or unreadable file and, without on_fault, for a line that is no row.
    """
    yield from open_data(path).train(on_fault=on_fault)


def open_data(path: str) -> Data:
    """What `path` stands for: a file, a folder, a glob, or a dataset of the hub (owner/name[/config][:split]).

    Raises: DataError when there is none, or of no known kind.
    """
    files = find(path)
    if files is None:
        from autoft.trainer.data.hub import hub_data, is_hub_id

        if kind(path) not in (*TABLES, *TEXTS) and is_hub_id(path):
            return hub_data(path)
        raise DataError(
            f"{path}: no such file",
            fix=f"check the path; for data {KINDS_HELP}; a folder, a glob, or a hub dataset (owner/name)",
        )
    splits = splits_of(files.train[0]) if len(files.train) == 1 and not files.heldout else None
    if splits is not None:
        parts = roles(splits)
        heldout = partial(_rows_of, files.train, path, parts=(parts.heldout,)) if parts.heldout else None
        return Data(partial(_rows_of, files.train, path, parts=parts.train), heldout, parts)
    heldout = partial(_rows_of, files.heldout, path) if files.heldout else None
    return Data(partial(_rows_of, files.train, path), heldout, files.roles)


def _rows_of(
    files: tuple[Path, ...], path: str, on_fault: OnFault | None = None, parts: tuple[str | None, ...] = ()
) -> Iterator[RawRow]:
    """parts: of a JSON file that holds several splits, those to read."""
    if len(files) == 1 and files[0].stat().st_size == 0:
        raise DataError(f"{path}: empty file", fix="give a file with one JSON object a line")
    any_row = False
    for file in files:
        refuse_impostor(file)
        for row in rows_of_splits(file, parts) if parts else _reader(file)(file):
            any_row = True
            if isinstance(row, RawRow):
                yield row
            elif on_fault is None:
                raise row
            else:
                on_fault(row)
    if not any_row:
        raise DataError(f"{path}: no rows", fix="give data with at least one row")


def _reader(file: Path) -> Callable[[Path], Iterator[RawRow | DataError]]:
    """What reads it: rows, and in their place what is wrong with lines that are none, where the next can be told."""
    form = kind(file.name)
    if form in COLUMNAR:
        if file.suffix.lower() in PACKED:
            raise DataError(
                f"{file}: {form} cannot be read through {file.suffix}", fix=f"unpack it: {form} is compressed inside"
            )
        from autoft.trainer.data.columnar import arrow_rows, parquet_rows

        return parquet_rows if form == ".parquet" else arrow_rows
    if form in TEXTS:
        return _passages
    return csv_rows if form in (".csv", ".tsv") else json_rows


# --- plain text -----------------------------------------------------------------------------------------------------


def _passages(file: Path) -> Iterator[RawRow]:
    """A plain text in passages of at most PASSAGE_CHARACTERS, each ended by a blank line if there is one in its second
    half, else by the end of a line, or of a word. Together they are the file, but for blank lines at its ends.
    """
    kept: list[tuple[int, str]] = []
    size = 0
    for number, line in _short_lines(file):
        if size + len(line) > PASSAGE_CHARACTERS and not line.isspace():
            blank = next((at for at in range(len(kept), 0, -1) if kept[at - 1][1].isspace()), 0)
            cut = blank if 2 * _size(kept[:blank]) > PASSAGE_CHARACTERS else len(kept)
            yield _passage(file, kept[:cut], goes_on=True)
            del kept[:cut]
            size = _size(kept)
        if kept or not line.isspace():
            kept.append((number, line))
            size += len(line)
    if kept:
        yield _passage(file, kept, goes_on=False)


def _passage(file: Path, lines: list[tuple[int, str]], *, goes_on: bool) -> RawRow:
    return RawRow({"text": "".join(text for _, text in lines)}, f"{file}:{lines[0][0]}", goes_on)


def _size(lines: list[tuple[int, str]]) -> int:
    return sum(len(text) for _, text in lines)


def _short_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of lines, those longer than PASSAGE_CHARACTERS in pieces that end with a word."""
    for number, line in enumerate(lines_of(file), start=1):
        rest = line
        while len(rest) > PASSAGE_CHARACTERS:
            end = rest.rfind(" ", 1, PASSAGE_CHARACTERS) + 1 or PASSAGE_CHARACTERS
            yield number, rest[:end]
            rest = rest[end:]
        yield number, rest
