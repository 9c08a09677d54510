"""Rows from files: JSON, JSONL, CSV, Parquet. Every row remembers where it came from, so that an error can say so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file. where: file:line, or file: row N."""

    fields: dict[str, Any]
    where: str


def read_rows(path: str) -> list[RawRow]:
    """Every row of the file at `path`.

    Raises: DataError for a missing, empty or unreadable file, and for a line that is no JSON object (file:line).
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(
            f"{path}: no such file", fix="check the path; --data takes a .jsonl, .json, .csv or .parquet file"
        )
    if file.is_dir():
        raise DataError(f"{path}: a folder", fix="name the file in it")
    if file.suffix.lower() not in (*JSON_SUFFIXES, *TABLE_SUFFIXES):
        raise DataError(
            f"{path}: {file.suffix or 'no suffix'} is not a known kind of data",
            fix="use .jsonl, .json, .csv or .parquet",
        )
    if file.stat().st_size == 0:
        raise DataError(f"{path}: empty file", fix="give a file with one JSON object a line")
    rows = list(_table_rows(file) if file.suffix.lower() in TABLE_SUFFIXES else _json_rows(file))
    if not rows:
        raise DataError(f"{path}: no rows", fix="give a file with one JSON object a line")
    return rows


def split_rows(rows: list[RawRow], heldout: int) -> tuple[list[RawRow], list[RawRow]]:
    """(training, held-out) rows: the same split every time, and equal rows always on one side.

    heldout: rows wanted, at most a tenth of all. Order within each side is the file's.
    """
    wanted = min(heldout, len(rows) // 10)
    keys = [hashlib.sha256(json.dumps(row.fields, sort_keys=True, default=str).encode()).hexdigest() for row in rows]
    chosen = set(sorted(set(keys))[:wanted])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in chosen]


def _json_rows(file: Path) -> Iterator[RawRow]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{number}: not UTF-8 text", fix="save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", fix="check the file's permissions") from None
    if file.suffix.lower() == ".json" and text.lstrip().startswith("["):
        yield from _json_list(file, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield RawRow(_object(_parsed(line, f"{file}:{number}"), f"{file}:{number}"), f"{file}:{number}")


def _json_list(file: Path, text: str) -> Iterator[RawRow]:
    for position, item in enumerate(_parsed(text, str(file)), start=1):
        where = f"{file}: row {position}"
        yield RawRow(_object(item, where), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
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


def _table_rows(file: Path) -> Iterator[RawRow]:
    from datasets import Dataset

    read = Dataset.from_csv if file.suffix.lower() == ".csv" else Dataset.from_parquet
    try:
        table = read(str(file), keep_in_memory=True)
    except Exception as error:
        raise DataError(
            f"{file}: cannot be read: {' '.join(str(error).split())[:160]}", fix="check the file"
        ) from error
    for number, fields in enumerate(table, start=1):
        yield RawRow({k: v for k, v in fields.items() if v is not None}, f"{file}: row {number}")
