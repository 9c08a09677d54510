"""Rows from wherever data is: files, folders and globs, the hub. Every row remembers where it came from.

What is read one row after the other takes no more memory than its longest row; a .json list is read whole, Parquet a
row group at a time.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from autoft.errors import DataError
from autoft.trainer.data.files import KINDS_HELP, PACKED, TABLES, TEXTS, Roles, find, kind

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, written as an escape
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072
PASSAGE_CHARACTERS = 8000  # of a plain text in one row: some 2,000 tokens
COLUMNAR = (".parquet", ".arrow", ".feather")

OnFault = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file.

    where: file:line, or file: row N. goes_on: a passage whose text goes on in the next row, so that it has no end.
    """

    fields: dict[str, Any]
    where: str
    goes_on: bool = False


class Start(Protocol):
    """Starts reading. Without on_fault, a line that is no row raises."""

    def __call__(self, *, on_fault: OnFault | None = None) -> Iterator[RawRow]: ...


@dataclass(frozen=True, slots=True)
class Data:
    """What a path stands for. train, heldout: start reading anew each time; heldout is None where no split is for that.

    roles: the splits that were found, by their names.
    """

    train: Start
    heldout: Start | None
    roles: Roles


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
    found = find(path)
    if found is None:
        from autoft.trainer.data.hub import hub_data, is_hub_id

        if kind(path) not in (*TABLES, *TEXTS) and is_hub_id(path):
            return hub_data(path)
        raise DataError(
            f"{path}: no such file",
            fix=f"check the path; for data {KINDS_HELP}; a folder, a glob, or a hub dataset (owner/name)",
        )
    heldout = partial(_rows_of, found.heldout, path) if found.heldout else None
    return Data(partial(_rows_of, found.train, path), heldout, found.roles)


def _rows_of(files: tuple[Path, ...], path: str, on_fault: OnFault | None = None) -> Iterator[RawRow]:
    if len(files) == 1 and files[0].stat().st_size == 0:
        raise DataError(f"{path}: empty file", fix="give a file with one JSON object a line")
    found = False
    for file in files:
        for row in _reader(file)(file):
            found = True
            if isinstance(row, RawRow):
                yield row
            elif on_fault is None:
                raise row
            else:
                on_fault(row)
    if not found:
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
    return {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows}.get(form, _json_lines)


# --- text, line by line --------------------------------------------------------------------------------------------


def _open(file: Path) -> BinaryIO:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        import gzip

        return cast(BinaryIO, gzip.open(file))
    if suffix == ".bz2":
        import bz2

        return cast(BinaryIO, bz2.open(file))
    if suffix == ".xz":
        import lzma

        return cast(BinaryIO, lzma.open(file))
    if suffix == ".zst":
        import io

        import pyarrow  # type: ignore[import-untyped]

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")))
    return file.open("rb")


def _lines(file: Path) -> Iterator[str]:
    """Lines of UTF-8 text with their ends, unpacked. Raises: DataError, with file:line where the text is at fault."""

    for number, line in enumerate(_byte_lines(file), start=1):
        yield _decoded(line, file, number)


def _decoded(line: bytes, file: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{file}:{number}: not UTF-8 text", fix="save the file as UTF-8") from None


def _byte_lines(file: Path) -> Iterator[bytes]:
    import lzma
    import zlib

    try:
        with _open(file) as lines:
            yield from lines
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if file.suffix.lower() in PACKED and getattr(error, "errno", None) is None:
            raise DataError(f"{file}: cannot be unpacked: {error}", fix="pack it anew, or fetch it again") from None
        raise DataError(
            f"{file}: {getattr(error, 'strerror', error)}", fix="check the file and its permissions"
        ) from None


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
    for number, line in enumerate(_lines(file), start=1):
        rest = line
        while len(rest) > PASSAGE_CHARACTERS:
            end = rest.rfind(" ", 1, PASSAGE_CHARACTERS) + 1 or PASSAGE_CHARACTERS
            yield number, rest[:end]
            rest = rest[end:]
        yield number, rest


def _csv_rows(file: Path) -> Iterator[RawRow | DataError]:
    """Cells stay text as they are written: an answer "42", "NA" or "null" is no number and no gap."""
    csv.field_size_limit(LONGEST_CELL)
    numbered = _lines(file)
    first = next(numbered, "")
    delimiter = "\t" if kind(file.name) == ".tsv" else ","
    if delimiter not in first:
        delimiter = next((other for other in (";", "\t") if other in first), delimiter)
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]
    lines = csv.reader(itertools.chain([first], numbered), strict=True, delimiter=delimiter)
    try:
        header = next(lines, [])
        _demand_distinct(header, file)
        begins = lines.line_num + 1
        for cells in lines:
            where = f"{file}:{begins}"
            begins = lines.line_num + 1
            if cells and len(cells) != len(header):
                yield DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}",
                    fix=f'put cells that hold a {name} in quotes: "a{delimiter} b"',
                )
            elif cells:
                yield RawRow(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:  # where a quote is open, nothing after it can be told apart
        yield DataError(f"{file}:{lines.line_num}: not CSV: {error}", fix="check the quotes of that row")


def _demand_distinct(header: list[str], file: Path) -> None:
    twice = next((name for at, name in enumerate(header) if name in header[:at]), None)
    if twice is not None:
        raise DataError(f"{file}:1: two columns are called {twice!r}", fix="give every column a name of its own")


# --- JSON ----------------------------------------------------------------------------------------------------------


def _json_lines(file: Path) -> Iterator[RawRow | DataError]:
    for number, line in enumerate(_byte_lines(file), start=1):
        where = f"{file}:{number}"
        try:
            text = _decoded(line, file, number).rstrip("\n")
            row: RawRow | DataError | None = (
                RawRow(_object(_parsed(text, where), where), where) if text.strip() else None
            )
        except DataError as error:
            row = error
        if row is not None:
            yield row


def _json_rows(file: Path) -> Iterator[RawRow | DataError]:
    """A list of objects, an object that holds one such list ({"data": [...]}), one object, or one a line."""
    start = next((line.strip() for line in _lines(file) if line.strip()), "")
    if not start.startswith("[") and _is_json(start):
        yield from _json_lines(file)
        return
    value = _parsed("".join(_lines(file)), str(file)) if start else []
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)]
        value = lists[0] if len(lists) == 1 and not _is_row(value) else [value]
    for position, item in enumerate(value if isinstance(value, list) else [value], start=1):
        where = f"{file}: row {position}"
        try:
            yield RawRow(_object(item, where), where)
        except DataError as error:
            yield error


def _is_row(value: dict[str, Any]) -> bool:
    """Whether an object's list is its turns, and not rows."""
    from autoft.trainer.data.shape import CONVERSATIONS

    return any(name.lower() in CONVERSATIONS for name in value)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


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
