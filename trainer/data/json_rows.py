"""Rows of JSON files: an object a line, one list, objects one after the other, or a table by columns."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.files import kind, split_in
from autoft.trainer.data.layout import CONVERSATIONS
from autoft.trainer.data.lines import RawRow, byte_lines, decoded, first_lines, lines_of

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, written as an escape
SPACE = re.compile(r"[ \t\r\n]*")
TURN = frozenset(("role", "from", "speaker"))
ROW_HELP = 'write rows like {"prompt": ..., "completion": ...}'
NAMED_LIST = re.compile(r'"([^"\\]*)"\s*:\s*\[')
HEAD_LINES, HEAD_CHARACTERS = 20, 20_000  # in which an object of splits has the first of them
KINDS = (".json", ".jsonl", ".ndjson")


def json_rows(file: Path) -> Iterator[RawRow | DataError]:
    """The rows of a JSON file, and in their place what is wrong with lines that are none.

    Whatever its suffix: an object a line; a list of objects; objects over several lines one after the other; an object
    that holds one such list ({"data": [...]}); a table by columns ({"prompt": [...], "completion": [...]}), as pandas
    writes them too; one object. All but the first are read whole.
    Raises: DataError where the whole is no JSON, or its columns differ in length.
    """
    first = first_lines(file, 2)
    if not first:
        return
    value, ends_at = _value(first[0])
    if ends_at is None:
        whole = len(first) == 1 and (isinstance(value, list) or _rows_within(value, str(file)) is not None)
    elif first[0].startswith("["):
        whole = True
    else:  # it goes on in the next line, unless that is a row by itself
        whole = ends_at >= len(first[0]) and (len(first) == 1 or _value(first[1])[1] is not None)
    yield from _whole(file) if whole else _by_line(file)


def splits_of(file: Path) -> tuple[str, ...] | None:
    """The names of the splits of a JSON file that is an object of them, {"train": [...], "test": [...]}; else None."""
    if kind(file.name) not in KINDS or file.stat().st_size == 0:
        return None
    try:
        first = first_lines(file, 2)
        if not first or not first[0].startswith("{") or (len(first) > 1 and _value(first[0])[1] is None):
            return None
        names = NAMED_LIST.findall("".join(itertools.islice(lines_of(file), HEAD_LINES))[:HEAD_CHARACTERS])
        if not any(map(split_in, names)):
            return None
        value, _ = _value("".join(lines_of(file)))
    except DataError:
        return None
    return tuple(_splits(value)) or None


def rows_of_splits(file: Path, parts: tuple[str | None, ...]) -> Iterator[RawRow | DataError]:
    """The rows of some splits of a file that `splits_of` has looked at."""
    value = _parsed("".join(lines_of(file)), str(file))
    for part in parts:
        yield from _listed(value[part], f"{file}: {part}")


def _by_line(file: Path) -> Iterator[RawRow | DataError]:
    for number, line in enumerate(byte_lines(file), start=1):
        where = f"{file}:{number}"
        try:
            text = decoded(line, file, number).rstrip("\n")
            row: RawRow | DataError | None = (
                RawRow(_object(_parsed(text, where), where), where) if text.strip() else None
            )
        except DataError as error:
            row = error
        if row is not None:
            yield row


def _whole(file: Path) -> Iterator[RawRow | DataError]:
    values = _values("".join(lines_of(file)), file)
    if len(values) > 1:
        for value, line in values:
            yield from _row(value, f"{file}:{line}")
        return
    value = values[0][0]
    rows = value if isinstance(value, list) else _rows_within(value, str(file))
    yield from _listed([value] if rows is None else rows, str(file))


def _values(text: str, file: Path) -> list[tuple[Any, int]]:
    """(value, the line where it begins) of JSON values one after the other."""
    decoder, values, line, counted = json.JSONDecoder(), list[tuple[Any, int]](), 1, 0
    at = _after_space(text, 0)
    try:
        while at < len(text):
            line, counted = line + text.count("\n", counted, at), at
            value, at = decoder.raw_decode(text, at)
            values.append((value, line))
            at = _after_space(text, at)
        if SURROGATE.search(text):
            json.dumps([value for value, _ in values], ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _not_json(error, str(file)) from None
    return values


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def _rows_within(value: Any, file: str) -> list[Any] | None:
    """The rows that an object holds; None where it is a row itself. Raises: DataError for columns of unequal length."""
    if not isinstance(value, dict) or _is_row(value):
        return None
    if _splits(value):
        raise DataError(f"{file}: holds the splits {', '.join(_splits(value))}", fix="give this file alone as --data")
    lists = {name: each for name, each in value.items() if isinstance(each, list)}
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):  # pandas, orient="split"
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"] if isinstance(cells, list)]
    rows = [each for each in lists.values() if each and all(isinstance(item, dict) for item in each)]
    if len(rows) == 1:
        return rows[0]
    if (
        value
        and len(lists) == len(value)
        and not any(isinstance(item, dict) for each in lists.values() for item in each)
    ):
        lengths = {name: len(each) for name, each in lists.items()}
        if len(set(lengths.values())) > 1:
            columns = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise DataError(f"{file}: its columns differ in length: {columns}", fix="give every column as many values")
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if value and all(isinstance(each, dict) and each for each in value.values()):
        if all(name.isdecimal() for name in value):  # pandas, orient="index"
            return list(value.values())
        first = next(iter(value.values()))
        if all(each.keys() == first.keys() and all(key.isdecimal() for key in each) for each in value.values()):
            return [{name: each[key] for name, each in value.items()} for key in first]
    return None


def _splits(value: Any) -> list[str]:
    """The names of the splits that an object is made of; empty where it is of something else."""
    if not isinstance(value, dict):
        return []
    lists = [n for n, each in value.items() if isinstance(each, list) and each and isinstance(each[0], dict)]
    return lists if len(lists) > 1 and all(split_in(name) for name in lists) else []


def _listed(items: list[Any], file: str) -> Iterator[RawRow | DataError]:
    for position, item in enumerate(items, start=1):
        yield from _row(item, f"{file}: row {position}")


def _row(item: Any, where: str) -> Iterator[RawRow | DataError]:
    try:
        yield RawRow(_object(item, where), where)
    except DataError as error:
        yield error


def _is_row(value: dict[str, Any]) -> bool:
    """Whether an object's list is its turns, and not rows."""
    return any(name.lower() in CONVERSATIONS and _are_turns(each) for name, each in value.items())


def _are_turns(value: Any) -> bool:
    """Of a list: turns, or texts that are said in turn; lists are a column of conversations."""
    return isinstance(value, str) or (isinstance(value, list) and not any(isinstance(each, list) for each in value))


def _value(text: str) -> tuple[Any, int | None]:
    """(what a text is as JSON, None), or (None, where it ceases to be JSON)."""
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, error.pos
    except (ValueError, RecursionError):
        return None, 0


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise _not_json(error, where) from None


def _not_json(error: Exception, where: str) -> DataError:
    if isinstance(error, UnicodeEncodeError):
        return DataError(
            f"{where}: half of a character, an escape such as \\ud83d without its other half",
            fix="write the file as UTF-8 text without escapes, or remove the row",
        )
    if isinstance(error, json.JSONDecodeError):
        if error.msg == "Extra data" and error.doc[error.pos :].strip() == ",":
            return DataError(f"{where}: a comma after the object", fix="remove the commas between lines")
        place = where if error.lineno == 1 else f"{where}:{error.lineno}"
        return DataError(f"{place}: not JSON: {error.msg} at column {error.colno}", fix="write one JSON object a line")
    if isinstance(error, RecursionError):
        return DataError(f"{where}: JSON nested too deeply", fix="write one flat JSON object a line")
    return DataError(f"{where}: a number with too many digits", fix="write it as a text, or remove the row")


def _object(value: Any, where: str) -> dict[str, Any]:
    """A row; a list of turns is one with no more than its conversation."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and TURN & turn.keys() for turn in value):
        return {"messages": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, not an object", fix=ROW_HELP)
    return value
