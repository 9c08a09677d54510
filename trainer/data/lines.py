"""Lines of a file, whatever packs or encodes them; and files that are something else than their name says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, cast

from autoft.errors import DataError
from autoft.trainer.data.files import PACKED, TEXTS, kind
from autoft.trainer.sources.weights import LFS_POINTER

PEEK_BYTES = 1024
MOST_LINE = 2**29  # bytes, or characters of UTF-16: a list of rows may be written on one line
# (what a file begins with, what it is, what to do)
IMPOSTORS = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it; save a sheet as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV (UTF-8)"),
    (b"%PDF", "a PDF document", "extract its text first"),
    (b"PAR1", "a Parquet file", "call it .parquet"),
    (b"ARROW1", "an Arrow file", "call it .arrow"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"\x1f\x8b", "packed with gzip", "put .gz behind its name"),
    (b"BZh", "packed with bzip2", "put .bz2 behind its name"),
    (b"\xfd7zXZ", "packed with xz", "put .xz behind its name"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "put .zst behind its name"),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file.

    where: file:line, or file: row N. goes_on: a passage whose text goes on in the next row, so that it has no end.
    """

    fields: dict[str, Any]
    where: str
    goes_on: bool = False


def refuse_impostor(file: Path) -> None:
    """Raises: DataError for a Git LFS pointer, a web page, and other files that are not what their name says."""
    form = kind(file.name)
    try:
        with file.open("rb") as raw:
            head = raw.read(PEEK_BYTES)
    except OSError as error:
        raise _unreadable(file, error) from None
    if head.startswith(LFS_POINTER):
        raise DataError(
            f"{file}: a Git LFS pointer, which stands for the data", fix="fetch the data itself: `git lfs pull`"
        )
    if form in TEXTS:
        return
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(WEB_PAGES):
        raise DataError(f"{file}: a web page or XML, not data", fix="fetch the file itself: its raw or download link")
    own = {".parquet": b"PAR1", ".arrow": b"ARROW1", ".feather": b"ARROW1"}.get(form)
    if file.suffix.lower() not in PACKED:
        for magic, what, fix in IMPOSTORS:
            if head.startswith(magic) and magic != own:
                raise DataError(f"{file}: {what}, not {form or 'data'}", fix=fix)


def lines_of(file: Path) -> Iterator[str]:
    """Lines of text with their ends, unpacked. Raises: DataError, with file:line where the text is at fault."""
    for number, line in enumerate(byte_lines(file), start=1):
        yield decoded(line, file, number)


def decoded(line: bytes, file: Path, number: int) -> str:
    """A line as text, without a byte order mark. Raises: DataError where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(
            f"{file}:{number}: not UTF-8 text", fix="save the file as UTF-8 (in Excel: CSV UTF-8)"
        ) from None


def byte_lines(file: Path) -> Iterator[bytes]:
    """Lines as UTF-8 with their ends, unpacked; a file in UTF-16 or UTF-32 is read as such."""
    import lzma
    import zlib

    try:
        with _open(file) as lines:
            encoding = _encoding(cast(io.BufferedReader, lines).peek(PEEK_BYTES)[:PEEK_BYTES])
            if encoding is None:
                yield from _bounded(lines, file)
            else:
                with io.TextIOWrapper(lines, encoding, newline="\n") as text:
                    for line in _bounded(text, file):
                        yield line.encode()
    except UnicodeDecodeError:
        raise DataError(
            f"{file}: starts with a UTF-16 mark but is not UTF-16 text", fix="save the file as UTF-8"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if file.suffix.lower() in PACKED and getattr(error, "errno", None) is None:
            raise DataError(
                f"{file}: cannot be unpacked: {error}", fix="compress it again, or download it again"
            ) from None
        raise _unreadable(file, error) from None


def _bounded(lines: IO[AnyStr], file: Path) -> Iterator[AnyStr]:
    """Raises: DataError for a line that is longer than a row can be: a few packed bytes may stand for gigabytes."""
    number = 1
    while line := lines.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise DataError(
                f"{file}:{number}: a line of more than {MOST_LINE // 2**20} MiB: longer than rows are",
                fix="write one row a line",
            )
        yield line
        number += 1


def first_lines(file: Path, wanted: int) -> list[str]:
    """The first lines that are not blank, at most so many, without white space around them; to look at only."""
    first: list[str] = []
    for line in byte_lines(file):
        if text := line.decode("utf-8", "replace").lstrip("\ufeff").strip():
            first.append(text)
        if len(first) == wanted:
            break
    return first


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file}: {getattr(error, 'strerror', error)}", fix="check the file and its permissions")


def _encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by their byte order marks, UTF-16 without one by its zero bytes; None: UTF-8, or another."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if not even and not odd:
        return None
    if 8 * max(even, odd) < len(head) or 8 * min(even, odd) > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


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
