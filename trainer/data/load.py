"""The data of a Job: rows to train on and rows held out, from wherever they are, or the bundled starter task."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autoft.errors import DataError
from autoft.home import home
from autoft.trainer.data.mapping import Mapping, parse_mapping
from autoft.trainer.data.read import RawRow, open_data
from autoft.trainer.data.shape import Row, convert_rows, shown
from autoft.trainer.data.split import heldout_keys, row_key


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows that are read anew each time they are gone over, so that none needs to be held. taken: places left out."""

    read: Callable[[], Iterator[RawRow]]
    mapping: Mapping | None
    total: int
    taken: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.total - len(self.taken)

    def __iter__(self) -> Iterator[Row]:
        return convert_rows((raw for at, raw in enumerate(self.read()) if at not in self.taken), self.mapping)


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows to train on and rows held out.

    system_prompt: the one that all training conversations share, if they do. notes: what the user should know of how
    the data was read, a sentence each.
    """

    train: TrainingRows
    heldout: list[Row]
    system_prompt: str | None
    notes: tuple[str, ...] = ()


def load_data(data: str, eval_data: str | None = None, *, eval_rows: int = 100, mapping: str | None = None) -> Splits:
    """Read and recognise the rows. All are read and checked; of those to train on some 150 bytes each are kept.

    data: what open_data takes, or "starter" for the bundled task, which is written to AUTOFT_HOME as ordinary JSONL.
    eval_data: the same for held-out rows; without it data's own split for that, and without one a tenth of data. Of
    each up to eval_rows, chosen by what they say, in their order. mapping: which column is what, as --map words it.
    Raises: DataError, OptionError.
    """
    if data == "starter":
        from autoft.trainer.data.support_desk import write

        train_file, heldout_file = write(home() / "data")
        data, eval_data = str(train_file), eval_data or str(heldout_file)
    columns = parse_mapping(mapping) if mapping else None
    source = open_data(data)
    survey = _survey(convert_rows(source.train(), columns))
    notes = _reading_notes(survey, columns)
    taken: frozenset[int] = frozenset()
    if eval_data is not None:
        given = open_data(eval_data)
        others = convert_rows((given.heldout or given.train)(), columns)
        heldout, _ = _heldout(others, frozenset(survey.keys), eval_rows, convert_rows(source.train(), columns))
    elif source.heldout is not None:
        others = convert_rows(source.heldout(), columns)
        heldout, trained = _heldout(others, frozenset(survey.keys), eval_rows)
        notes.append(f"held out: {len(heldout)} rows of its split {source.roles.heldout!r}")
        if trained:
            notes.append(f"{trained} rows of the split {source.roles.heldout!r} are trained too, and not held out")
    else:
        keys = heldout_keys(survey.keys, eval_rows)
        taken = frozenset(at for at, key in enumerate(survey.keys) if key in keys)
        heldout = list(convert_rows((raw for at, raw in enumerate(source.train()) if at in taken), columns))
    unused = [split for split in (*source.roles.unused, eval_data and source.roles.heldout) if split]
    if unused:
        notes.append(f"not used: its split {' and '.join(map(repr, unused))}")
    train = TrainingRows(source.train, columns, len(survey.keys), taken)
    return Splits(train, heldout, survey.system_prompt, tuple(notes))


def load_rows(data: str, *, most: int, mapping: str | None = None) -> list[Row]:
    """At most so many rows to evaluate on, chosen by what they say, in their order: of a split for that, else of all.

    data, mapping: as `load_data` has them. Raises: DataError, OptionError.
    """
    if data == "starter":
        from autoft.trainer.data.support_desk import write

        data = str(write(home() / "data")[1])
    source = open_data(data)
    rows = convert_rows((source.heldout or source.train)(), parse_mapping(mapping) if mapping else None)
    return _heldout(rows, frozenset(), most)[0]


@dataclass(frozen=True, slots=True)
class _Survey:
    """What one reading of all rows tells. remarks: each with how many rows have it, and where the first of them is."""

    first: Row
    keys: list[bytes]
    system_prompt: str | None
    remarks: dict[str, tuple[int, str]]


def _survey(rows: Iterator[Row]) -> _Survey:
    first = next(rows)
    keys: list[bytes] = []
    prompts: set[str | None] = set()
    remarks: dict[str, tuple[int, str]] = {}
    for row in itertools.chain([first], rows):
        keys.append(row_key(row))
        if len(prompts) < 2:
            opens = bool(row.messages) and row.messages[0]["role"] == "system"
            prompts.add(row.messages[0]["content"] if opens else None)
        if row.remark:
            count, where = remarks.get(row.remark, (0, row.where))
            remarks[row.remark] = count + 1, where
    return _Survey(first, keys, prompts.pop() if len(prompts) == 1 else None, remarks)


def _heldout(
    rows: Iterator[Row], trained: frozenset[bytes], most: int, demand: Iterator[Row] | None = None
) -> tuple[list[Row], int]:
    """(at most so many of `rows`, in their order; how many were left out because they are trained).

    demand: the trained rows, where one among `rows` is a mistake. Raises: DataError then.
    """
    both: list[tuple[bytes, str]] = []

    def untrained() -> Iterator[tuple[bytes, int, Row]]:
        for at, row in enumerate(rows):
            key = row_key(row)
            if key in trained:
                both.append((key, row.where))
            else:
                yield key, at, row

    chosen = heapq.nsmallest(most, untrained(), key=lambda found: found[:2])
    if both and demand is not None:
        key, where = both[0]
        trained_at = next(row.where for row in demand if row_key(row) == key)
        others, them = "", "it"
        if len(both) > 1:
            others, them = f"; {len(both) - 1:,} more held-out rows are trained too", "them"
        raise DataError(
            f"{where}: this held-out row is also in {trained_at}, spaces and upper case aside{others}",
            fix=f"remove {them} from one of the two, or leave --eval-data out: then other rows are held out",
        )
    return [row for _, _, row in sorted(chosen, key=lambda found: found[1])], len(both)


def _reading_notes(survey: _Survey, mapping: Mapping | None) -> list[str]:
    notes = [f"--map {mapping.words}: {survey.first.where} reads {shown(survey.first)}"] if mapping else []
    for remark, (count, where) in survey.remarks.items():
        notes.append(remark if count == len(survey.keys) else f"{remark} ({count} rows, the first at {where})")
    return notes
