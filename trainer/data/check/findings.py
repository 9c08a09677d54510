"""What a person should know of two splits: faults, warnings, notes, and which rows a cleaned copy keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autoft.trainer.data.check import text, turns
from autoft.trainer.data.check.duplicates import first_equal, in_both, near_between, near_within
from autoft.trainer.data.check.report import Finding, Severity
from autoft.trainer.data.check.scan import Scan, Verdict
from autoft.trainer.data.check.tally import FIRST_PLACES, Places, Tally
from autoft.trainer.data.load import NONE_LEFT
from autoft.trainer.data.rendered import FRAMED, MARKERS, RENDERED_TEXT
from autoft.trainer.data.shape import names_of

Array = np.ndarray
# Of how rows were read, what is rarely meant
DOUBTFUL = (MARKERS, FRAMED, RENDERED_TEXT)


@dataclass(frozen=True, slots=True)
class Relations:
    """How good rows relate to others; -1 where they do not. All int64 [good rows], but for compared, which is bool.

    copy_of: the first row that says the same. like: an earlier row nearly the same, with its likeness. in_eval,
    like_eval, prompt_in_eval: a row of the other split that says the same, nearly the same, or only asks the same.
    compared: the row has enough words for like and like_eval.
    """

    copy_of: Array
    like: Array
    likeness: Array
    other_answer: Array
    in_eval: Array
    like_eval: Array
    eval_likeness: Array
    prompt_in_eval: Array
    compared: Array


def relate(scan: Scan, heldout: Scan | None) -> Relations:
    """Compare the rows of a split with each other and with the other split's."""
    keys, prompts = np.array(scan.keys, dtype=np.uint64), np.array(scan.prompts, dtype=np.uint64)
    # a copy of a row that cannot be trained is no copy to leave out
    rows = np.flatnonzero(~_other_shape(scan) & (_verdicts(scan) != Verdict.UNTRAINABLE))
    first = rows[first_equal(keys[rows])]
    copy_of = np.full(len(keys), -1)
    copy_of[rows] = np.where(first < rows, first, -1)
    none = np.full(len(keys), -1)
    sketches = scan.finish_sketches()
    if heldout is None:
        in_eval = like_eval = prompt_in_eval = none
        eval_likeness = np.zeros(len(keys), dtype=np.float32)
    else:
        in_eval = in_both(keys, np.array(heldout.keys, dtype=np.uint64))
        like_eval, eval_likeness = near_between(sketches, in_eval < 0, heldout.finish_sketches())
        prompt_rows = in_both(prompts, np.array(heldout.prompts, dtype=np.uint64))
        prompt_in_eval = np.where((in_eval < 0) & (like_eval < 0) & (prompts != 0), prompt_rows, -1)
    like, likeness = near_within(sketches, copy_of < 0)
    same_prompt = first_equal(prompts)
    other = (prompts != 0) & (same_prompt < np.arange(len(keys))) & (copy_of < 0) & (like < 0)
    return Relations(
        copy_of=copy_of,
        like=like,
        likeness=likeness,
        other_answer=np.where(other, same_prompt, -1),
        in_eval=in_eval,
        like_eval=like_eval,
        eval_likeness=eval_likeness,
        prompt_in_eval=prompt_in_eval,
        compared=sketches.comparable,
    )


def judge(scan: Scan, relations: Relations) -> None:
    """Complete the scan's verdicts with those that other rows decide."""
    verdicts = np.frombuffer(scan.verdicts, dtype=np.uint8)
    raw = np.array(scan.raw, dtype=np.int64)
    for verdict, rows in (
        (Verdict.OTHER_SHAPE, _other_shape(scan)),
        (Verdict.IN_EVAL, relations.in_eval >= 0),
        (Verdict.COPY, relations.copy_of >= 0),
    ):
        chosen = raw[rows]
        verdicts[chosen[verdicts[chosen] == Verdict.KEPT]] = verdict


def findings_of(scan: Scan, heldout: Scan | None, relations: Relations, *, own_split: bool) -> Iterator[Finding]:
    """All findings, faults first. own_split: held out is a split of the data, of which a run drops what it trains."""
    findings = [*_faults(scan, heldout, relations, own_split)]
    yield from (finding for finding in findings if finding.severity == "fault")
    yield from (finding for finding in findings if finding.severity != "fault")
    yield from _warnings(scan, relations, heldout)
    yield from _notes(scan, relations)


def _faults(scan: Scan, heldout: Scan | None, relations: Relations, own_split: bool) -> Iterator[Finding]:
    for side, held, prefix in ((scan, "", ""), (heldout, "held-out-", "held-out rows: ")):
        if side is None:
            continue
        for fault in side.faults.values():
            yield _finding(
                "fault", f"{held}broken", prefix + fault.what, fault.count.rows, fault.count.places, fault.fix
            )
        yield from _several(
            "fault", f"{held}other-shape", f"{prefix}columns differ from most rows ({side.format})",
            _other_shape(side), side.places, fix="give all rows the same columns",
        )  # fmt: skip
    if scan.left_out and not len(scan.keys):
        why = next(iter(scan.left_out))
        yield _finding("fault", "all-left-out", f"no row is left to train: {why}", scan.rows, [], fix=NONE_LEFT)
    if heldout is not None:
        yield from _several(
            "warning" if own_split else "fault", "in-both-splits",
            "also among the held-out rows" + ("; a run leaves them out of the evaluation" if own_split else
            ", so scores would look too good"),
            relations.in_eval >= 0, _Pairs(scan.places, heldout.places, relations.in_eval),
            fix="remove them from one of the two files (--fix leaves them out)",
        )  # fmt: skip
    context = scan.meter.context if scan.meter else None
    if context is not None and len(scan.tokens) and min(scan.tokens) > context and scan.format != "text":
        yield _finding(
            "fault", "all-too-long", f"every row is longer than the model's {context} tokens", len(scan.tokens), [],
            fix="shorter rows, or a model with a longer context",
        )  # fmt: skip


def _warnings(scan: Scan, relations: Relations, heldout: Scan | None) -> Iterator[Finding]:
    places = scan.places
    yield from _several(
        "warning", "exact-duplicates", "repeat an earlier row, ignoring case and spaces",
        relations.copy_of >= 0, _Pairs(places, places, relations.copy_of), fix="--fix keeps the first of each",
    )  # fmt: skip
    yield from _several(
        "warning", "near-duplicates", "nearly repeat an earlier row", relations.like >= 0,
        _Pairs(places, places, relations.like, relations.likeness), fix="look at a few, and keep the better one",
    )  # fmt: skip
    if heldout is not None:
        yield from _several(
            "warning", "nearly-in-both-splits", "nearly the same as a held-out row", relations.like_eval >= 0,
            _Pairs(places, heldout.places, relations.like_eval, relations.eval_likeness),
            fix="look at a few, and remove them from one of the two files",
        )  # fmt: skip
        yield from _several(
            "warning", "prompt-in-both-splits", "same prompt as a held-out row, different answer",
            relations.prompt_in_eval >= 0, _Pairs(places, heldout.places, relations.prompt_in_eval),
            fix="look at a few, and remove them from one of the two files",
        )  # fmt: skip
    context = scan.meter.context if scan.meter else None
    if context is not None:
        fate = "cut in pieces" if scan.format == "text" else "left out of training"
        longer = np.array(scan.tokens, dtype=np.int64) > context
        yield from _several(
            "warning", "too-long", f"longer than the model's {context} tokens: {fate}", longer, places,
            fix="shorten or split them",
        )  # fmt: skip
    yield from _tallied("warning", scan.turns, turns.KINDS, fix="look at a few")
    yield from _tallied("warning", scan.secrets, {kind: kind for kind in sorted(scan.secrets)},
                        fix="withdraw the key; --fix leaves the rows out")  # fmt: skip
    yield from _tallied("warning", scan.personal, {kind: kind for kind in sorted(scan.personal)},
                        fix="replace it, unless it is invented or may be learnt")  # fmt: skip
    doubtful = {remark: remark for remark in scan.remarks if remark in DOUBTFUL}
    yield from _tallied("warning", scan.remarks, doubtful, fix="look at a few", kind="rendered")
    for kinds, fix in (
        (("control", "invisible", "direction"), "--fix removes them"),
        (("mojibake", "replaced"), "export the data again as UTF-8"),
    ):
        yield from _tallied("warning", scan.text, {kind: text.KINDS[kind] for kind in kinds}, fix=fix)


def _notes(scan: Scan, relations: Relations) -> Iterator[Finding]:
    yield from _tallied("note", scan.text, {"html": text.KINDS["html"]}, fix=None)
    yield from _several(
        "note", "several-answers", "same prompt as an earlier row, different answer",
        relations.other_answer >= 0, _Pairs(scan.places, scan.places, relations.other_answer),
    )  # fmt: skip
    yield from _several(
        "note", "not-compared", "too short to check for near-duplicates",
        ~relations.compared & (relations.copy_of < 0), scan.places,
    )  # fmt: skip
    left_out = {why: f"left out: {why}" for why in scan.left_out} if len(scan.keys) else {}
    yield from _tallied("note", scan.left_out, left_out, fix=None, kind="left-out")
    plain = {remark: remark for remark in scan.remarks if remark not in DOUBTFUL}
    yield from _tallied("note", scan.remarks, plain, fix=None, kind="reading")
    for (rows, places), names in _alike(scan.unused).items():
        yield _finding("note", "unused", f"not used: {names_of(names)}", rows, places)
    if scan.meter and scan.meter.template:
        what = f"the model has no chat template: autoft supplies one ({scan.meter.template})"
        yield _finding("note", "supplied-template", what, 0, [])
    for note in scan.meter.notes if scan.meter else ():
        yield _finding("note", "thinking", note, 0, [])
    for fact, (count, where) in scan.facts.items():
        yield _finding("note", "template", fact.format(n=f"{count:,}"), count, [where])


def _alike(tally: Tally) -> dict[tuple[int, tuple[str, ...]], list[str]]:
    """The kinds that equally many rows have, from the same places on."""
    alike: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for kind, count in tally.items():
        alike.setdefault((count.rows, tuple(count.places)), []).append(kind)
    return alike


def _verdicts(scan: Scan) -> Array:
    """uint8 [good rows]"""
    return np.frombuffer(bytes(scan.verdicts), dtype=np.uint8)[np.array(scan.raw, dtype=np.int64)]


def _other_shape(scan: Scan) -> Array:
    """bool [good rows]"""
    shapes = np.array(scan.shape, dtype=np.uint8)
    return np.asarray(shapes != (scan.shapes.index(scan.format) if scan.format is not None else 0))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Places such as "a.jsonl:7 = a.jsonl:2", or, with how alike the two are, "a.jsonl:7 ~ a.jsonl:2 (91%)"."""

    places: Places
    theirs: Places
    others: Array
    likeness: Array | None = None

    def __getitem__(self, row: int) -> str:
        other = self.theirs[int(self.others[row])]
        if self.likeness is None:
            return f"{self.places[row]} = {other}"
        return f"{self.places[row]} ~ {other} ({min(self.likeness[row], 1):.0%})"


def _several(
    severity: Severity, kind: str, what: str, rows: Array, places: Places | _Pairs, fix: str | None = None
) -> Iterator[Finding]:
    """One finding for the rows that are marked, none where there are none."""
    marked = np.flatnonzero(rows)
    if len(marked):
        first = [places[int(row)] for row in marked[:FIRST_PLACES]]
        yield _finding(severity, kind, what, len(marked), first, fix)


def _tallied(
    severity: Severity, tally: Tally, kinds: Mapping[str, str], fix: str | None, kind: str | None = None
) -> Iterator[Finding]:
    """kind: what to call all of them; without it each is called as in the tally."""
    for name, what in kinds.items():
        if name in tally:
            called = kind or name.lower().replace(" ", "-")
            yield _finding(severity, called, what, tally[name].rows, tally[name].places, fix)


def _finding(
    severity: Severity, kind: str, what: str, rows: int, places: Iterable[str], fix: str | None = None
) -> Finding:
    return Finding(severity=severity, kind=kind, what=what, rows=rows, places=tuple(places), fix=fix)
