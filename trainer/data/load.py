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
from autoft.trainer.data.shape import Row, convert_rows, names_of, shown
from autoft.trainer.data.split import heldout_keys, row_key

NONE_LEFT = "give data with good answers, or remove the column that marks them"


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows that are read anew each time they are gone over, so that none needs to be held.

    total: of the data. taken: places of rows that are held out, or left out for what the data says of them.
    """

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
    taken = survey.left_out
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
        places = (at for at in range(survey.rows) if at not in survey.left_out)
        held = frozenset(at for at, key in zip(places, survey.keys, strict=True) if key in keys)
        heldout = list(convert_rows((raw for at, raw in enumerate(source.train()) if at in held), columns))
        taken |= held
    unused = [split for split in (*source.roles.unused, eval_data and source.roles.heldout) if split]
    if unused:
        notes.append(f"not used: its split {' and '.join(map(repr, unused))}")
    train = TrainingRows(source.train, columns, survey.rows, taken)
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
    """What one reading of all rows tells.

    keys: of the rows to train on. left_out: the places of others. remarks, unused, reasons (to leave a row out): each
    with how many rows have it, and where the first of them is.
    """

    first: Row
    rows: int
    keys: list[bytes]
    left_out: frozenset[int]
    system_prompt: str | None
    remarks: dict[str, tuple[int, str]]
    unused: dict[str, tuple[int, str]]
    reasons: dict[str, tuple[int, str]]


def _survey(rows: Iterator[Row]) -> _Survey:
    """Raises: DataError where every row is left out."""
    first = next(rows)
    keys: list[bytes] = []
    left_out: list[int] = []
    prompts: set[str | None] = set()
    remarks, unused, reasons = (dict[str, tuple[int, str]]() for _ in range(3))
    for at, row in enumerate(itertools.chain([first], rows)):
        if row.left_out is not None:
            left_out.append(at)
            _count(reasons, row.left_out, row.where)
            continue
        keys.append(row_key(row))
        if len(prompts) < 2:
            opens = bool(row.messages) and row.messages[0]["role"] == "system"
            prompts.add(row.messages[0]["content"] if opens else None)
        for remark in row.remarks:
            _count(remarks, remark, row.where)
        for name in row.unused:
            _count(unused, name, row.where)
    if not keys:
        why = next(iter(reasons))
        raise DataError(f"{first.where}: no row is left to train: {why}", fix=NONE_LEFT)
    system = prompts.pop() if len(prompts) == 1 else None
    return _Survey(first, len(keys) + len(left_out), keys, frozenset(left_out), system, remarks, unused, reasons)


def _count(counts: dict[str, tuple[int, str]], what: str, where: str) -> None:
    rows, first = counts.get(what, (0, where))
    counts[what] = rows + 1, first


def _heldout(
    rows: Iterator[Row], trained: frozenset[bytes], most: int, demand: Iterator[Row] | None = None
) -> tuple[list[Row], int]:
    """(at most so many of `rows`, in their order; how many were left out because they are trained).

    demand: the trained rows, where one among `rows` is a mistake. Raises: DataError then.
    """
    both: list[tuple[bytes, str]] = []

    def untrained() -> Iterator[tuple[bytes, int, Row]]:
        for at, row in enumerate(rows):
            if row.left_out is not None:
                continue
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
    for why, (rows, where) in survey.reasons.items():
        notes.append(f"{rows} of {survey.rows} rows are left out: {why}, the first at {where}")
    for remark, (rows, where) in survey.remarks.items():
        notes.append(remark if rows == len(survey.keys) else f"{remark} ({rows} rows, the first at {where})")
    notes += _unused(survey.unused, len(survey.keys))
    return notes


def _unused(unused: dict[str, tuple[int, str]], total: int) -> Iterator[str]:
    """What nothing is made of; what equally many rows have, from the same on, in one line."""
    alike: dict[tuple[int, str], list[str]] = {}
    for name, count in unused.items():
        alike.setdefault(count, []).append(name)
    for (rows, where), names in alike.items():
        yield f"not used: {names_of(names)}" + (f" ({rows} rows, the first at {where})" if rows != total else "")
