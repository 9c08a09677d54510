"""Rows from files: JSON, JSONL, CSV, Parquet. Every row remembers where it came from, so that an error can say so."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, written as an escape
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072

OnFault = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file. where: file:line, or file: row N."""

    fields: dict[str, Any]
    where: str


def read_rows(path: str) -> list[RawRow]:
    """Every row of the file at `path`. Raises: as stream_rows."""
    return list(stream_rows(path))


def stream_rows(path: str, *, on_fault: OnFault | None = None) -> Iterator[RawRow]:
    """The rows of the file at `path`, one after the other.

    on_fault: told of a line that is no row (file:line); reading then goes on with the next one.
    Raises: DataError for a missing, empty or unreadable file and, without on_fault, for a line that is no row.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(
            f"{path}: no such file", fix="check the path; --data takes a .jsonl, .json, .csv or .parquet file"
        )
    if file.is_dir():
        raise DataError(f"{path}: a folder", fix="name the file in it")
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: {file.suffix or 'no suffix'} is not a known kind of data",
            fix="use .jsonl, .json, .csv or .parquet",
        )
    if file.stat().st_size == 0:
        raise DataError(f"{path}: empty file", fix="give a file with one JSON object a line")
    reader = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(file.suffix.lower(), _json_rows)
    found = False
    faults = 0

    def tell(error: DataError) -> None:
        nonlocal faults
        if on_fault is None:
            raise error
        faults += 1
        on_fault(error)

    for row in reader(file, tell):
        found = True
        yield row
    if not found and not faults:
        raise DataError(f"{path}: no rows", fix="give a file with at least one row")


def split_rows(rows: list[RawRow], heldout: int) -> tuple[list[RawRow], list[RawRow]]:
    """(training, held-out) rows: the same split every time, and equal rows always on one side.

    heldout: rows wanted, at most a tenth of all. Order within each side is the file's.
    """
    wanted = min(heldout, len(rows) // 10)
    keys = [hashlib.sha256(json.dumps(row.fields, sort_keys=True, default=str).encode()).hexdigest() for row in rows]
    copies = Counter(keys)
    chosen: set[str] = set()
    for key in sorted(copies):
        if copies[key] <= wanted:
            chosen.add(key)
            wanted -= copies[key]
    train = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in chosen]


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{number}: not UTF-8 text", fix="save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", fix="check the file's permissions") from None


def _json_rows(file: Path, tell: OnFault) -> Iterator[RawRow]:
    if file.suffix.lower() == ".json" and _text(file).lstrip().startswith("["):
        yield from _json_list(file, tell)
        return
    for number, line in enumerate(_lines(file), start=1):
        where = f"{file}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\n")
            row = RawRow(_object(_parsed(text, where), where), where) if text.strip() else None
        except UnicodeDecodeError:
            tell(DataError(f"{where}: not UTF-8 text", fix="save the file as UTF-8"))
        except DataError as error:
            tell(error)
        else:
            if row is not None:
                yield row


def _lines(file: Path) -> Iterator[bytes]:
    """One line in memory at a time."""
    try:
        with file.open("rb") as lines:
            yield from lines
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", fix="check the file's permissions") from None


def _json_list(file: Path, tell: OnFault) -> Iterator[RawRow]:
    for position, item in enumerate(_parsed(_text(file), str(file)), start=1):
        where = f"{file}: row {position}"
        try:
            row = RawRow(_object(item, where), where)
        except DataError as error:
            tell(error)
        else:
            yield row


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: half of a character, an escape such as \\ud83d without its other half",
            fix="write the file as UTF-8 text without escapes, or remove the row",
        ) from None
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where}:{error.lineno}"
        raise DataError(
            f"{place}: not JSON: {error.msg} at column {error.colno}", fix="write one JSON object a line"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply", fix="write one flat JSON object a line") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: a JSON {type(value).__name__}, not an object",
            fix='write rows like {"prompt": ..., "completion": ...}',
        )
    return value


def _csv_rows(file: Path, tell: OnFault) -> Iterator[RawRow]:
    """Cells stay text as they are written: an answer "42", "NA" or "null" is no number and no gap."""
    csv.field_size_limit(LONGEST_CELL)
    lines = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        header = next(lines, [])
        begins = lines.line_num + 1
        for cells in lines:
            where = f"{file}:{begins}"
            begins = lines.line_num + 1
            if cells and len(cells) != len(header):
                tell(
                    DataError(
                        f"{where}: {len(cells)} cells, but the header has {len(header)}",
                        fix='put cells that hold a comma in quotes: "a, b"',
                    )
                )
            elif cells:
                yield RawRow(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:
        # where a quote is open, nothing after it can be told apart
        tell(DataError(f"{file}:{lines.line_num}: not CSV: {error}", fix="check the quotes of that row"))


def _parquet_rows(file: Path, _tell: OnFault) -> Iterator[RawRow]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        table = parquet.read_table(file, partitioning=None)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not Parquet: {' '.join(str(error).split())[:160]}", fix="check the file") from error
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield RawRow({k: v for k, v in fields.items() if v is not None}, f"{file}: row {number}")
