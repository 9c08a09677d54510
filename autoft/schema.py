"""Frozen records that travel as dicts, JSON and TOML, checked on the way in with dotted paths.

`Record` is the base of every type that crosses an edge (Hardware, Recipe, Job, Plan, ...). Building one in code is
plain dataclass construction; reading one from outside goes through pydantic, which is imported only then.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Self

from autoft.errors import FileFormatError, near


class Record:
    """Base of the frozen dataclasses: `to_dict`, `from_dict`, `to_toml`, `from_toml`, all exact inverses."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, numbers, booleans and None, ready for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, where: str = "") -> Self:
        """The record that `data` describes.

        where: what to call the source in an error, such as a file name.
        Raises: FileFormatError naming the dotted path of the first thing wrong.
        """
        from pydantic import ValidationError

        try:
            # a TOML date has no JSON form: as text it is refused with its path, like any other wrong value
            record: Self = _adapter(cls).validate_json(json.dumps(data, default=str))  # type: ignore[arg-type]
        except ValidationError as error:
            raise _explain(cls, error, where) from None
        return record

    def to_toml(self) -> str:
        """TOML text. None has no TOML form: such keys are left out, and a missing key reads as its default."""
        import tomli_w

        return tomli_w.dumps(without_none(self.to_dict()))

    @classmethod
    def from_toml(cls, text: str, *, where: str = "") -> Self:
        """Raises: FileFormatError for broken TOML (with its line) or wrong content (with its dotted path)."""
        return cls.from_dict(parse_toml(text, where=where), where=where)


def without_none(value: Any) -> Any:
    """`to_dict`'s dicts and lists without the keys that are None, as TOML wants them."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_none(v) for v in value]
    return value


def parse_toml(text: str, *, where: str) -> dict[str, Any]:
    """Raises: FileFormatError with the line of the first mistake."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # besides its own, a number of 5,000 digits, or 5,000 brackets
        reason = str(error).split(";")[0]
        raise FileFormatError(
            f"{where}: not valid TOML: {reason}", fix="correct that line, or write the file again"
        ) from None


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Raises: FileFormatError with the line of the first mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"{where}:{error.lineno}: not JSON: {error.msg}"
    except UnicodeDecodeError:
        what = f"{where}: not UTF-8 text"
    except RecursionError:
        what = f"{where}: JSON nested too deeply"
    except ValueError:  # of Python's limit
        what = f"{where}: a number with too many digits"
    raise FileFormatError(what, fix="restore the file, or write it again")


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is gone, damaged or holds something else."""
    try:
        value = parse_json(path.read_bytes(), where=str(path))
    except (OSError, FileFormatError):
        return {}
    return value if isinstance(value, dict) else {}


def read_text(path: Path) -> str:
    """Raises: FileFormatError when the file is missing, a folder, unreadable, or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise FileFormatError(f"{path}: {reason}", fix="check the path and the file") from None


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _explain(cls: type, error: Any, where: str) -> FileFormatError:
    first = error.errors(include_url=False)[0]
    # pydantic names the branch of a union in the path ("literal['all-linear']"): no part of the user's file
    path = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
    prefix = f"{where}: " if where else ""
    if first["type"] == "json_invalid":  # what we encode is JSON, but for halves of characters
        return FileFormatError(
            f"{prefix}a text in it is not Unicode, such as a file name in another encoding", fix="rename that file"
        )
    if first["type"] == "value_error":
        return FileFormatError(
            f"{prefix}{path + ': ' if path else ''}{first['ctx']['error']}", fix="change one of them"
        )
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        parent = _fields_at(cls, first["loc"][:-1])
        hint = near(str(first["loc"][-1]), parent)
        return FileFormatError(
            f"{prefix}unknown key {path}.{hint}", fix=f"remove it, or use one of: {', '.join(parent)}"
        )
    if first["type"] in ("missing", "missing_argument"):
        return FileFormatError(f"{prefix}{path} is missing", fix="add it")
    if first["type"] == "literal_error":
        choices = [c.strip(" '") for c in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        given = first["input"]
        return FileFormatError(
            f"{prefix}{path} = {given!r} is not known.{near(str(given), choices)}",
            fix=f"use one of: {', '.join(choices)}",
        )
    message = first["msg"][0].lower() + first["msg"][1:]
    return FileFormatError(f"{prefix}{path} = {first['input']!r}: {message}", fix="correct that value")


def _fields_at(cls: type, loc: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the record found at `loc` inside `cls`."""
    import typing

    current: Any = cls
    for part in loc:
        if isinstance(part, int):
            continue
        hint = typing.get_type_hints(current)[part]
        records = [t for t in [hint, *typing.get_args(hint)] if isinstance(t, type) and issubclass(t, Record)]
        if not records:
            return []
        current = records[0]
    return [f.name for f in dataclasses.fields(current)]
