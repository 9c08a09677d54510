"""Rows from Parquet and Arrow files, with the names of a `datasets` label where the file has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.lines import RawRow

ROWS_AT_ONCE = 1000
# What Arrow's values raise, besides its own errors, where the file was damaged
DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, SystemError, MemoryError)


def parquet_rows(file: Path) -> Iterator[RawRow]:
    """Raises: DataError for a file that is no Parquet."""
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        with parquet.ParquetFile(file) as table:
            yield from rows_of(table.iter_batches(ROWS_AT_ONCE), table.schema_arrow, str(file))
    except (ArrowException, *DAMAGED) as error:
        raise _unreadable(file, "Parquet", error) from error


def arrow_rows(file: Path) -> Iterator[RawRow]:
    """Arrow's file format (Feather) or its stream, which `datasets` writes. Raises: DataError for neither."""
    import pyarrow

    try:
        with pyarrow.OSFile(str(file)) as source:  # not mapped: what points beyond the file's end would end the process
            if source.read(6) == b"ARROW1":
                table = pyarrow.ipc.open_file(source)
                batches: Iterable[Any] = (table.get_batch(at) for at in range(table.num_record_batches))
            else:
                source.seek(0)
                batches = table = pyarrow.ipc.open_stream(source)
            yield from rows_of(batches, table.schema, str(file))
    except (pyarrow.ArrowException, *DAMAGED) as error:
        raise _unreadable(file, "Arrow", error) from error


def rows_of(batches: Iterable[Any], schema: Any, where: str) -> Iterator[RawRow]:
    """The rows of Arrow record batches, numbered from 1."""
    labels = _label_names(schema)
    number = 0
    for batch in batches:
        batch.validate(full=True)  # else what a damaged file says of places in memory is believed
        for at in range(0, batch.num_rows, ROWS_AT_ONCE):
            for fields in batch.slice(at, ROWS_AT_ONCE).to_pylist():
                number += 1
                for column, names in labels.items():
                    if isinstance(fields[column], int) and 0 <= fields[column] < len(names):
                        fields[column] = names[fields[column]]
                yield RawRow(fields, f"{where}: row {number}")


def _label_names(schema: Any) -> dict[str, list[str]]:
    """The names that the numbers of a column stand for, from what `datasets` notes in a schema."""
    noted = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted)["info"]["features"] if noted else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {
        column: feature["names"]
        for column, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _unreadable(file: Path, form: str, error: Exception) -> DataError:
    return DataError(f"{file}: not {form}: {' '.join(str(error).split())[:160]}", fix="check the file")
