"""A check of whatever a run can read: folders with a split of their own, packed files, mapped columns."""

from __future__ import annotations

import gzip
import json

from autoft.trainer.data.check.examine import check
from autoft.trainer.data.check.fix import write_fixed
from autoft.trainer.data.read import stream_rows
from tests.conftest import write_jsonl


def rows(first: int, last: int) -> list[dict[str, str]]:
    return [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(first, last)]


def test_a_folder_s_own_split_is_compared_and_never_a_fault(tmp_path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", rows(0, 20))
    write_jsonl(folder / "test.jsonl", rows(19, 25))
    checked = check(str(folder))
    report = checked.report
    assert (report.rows, report.eval_rows, report.usable) == (20, 6, True)
    (finding,) = [finding for finding in report.findings if finding.kind == "in-both-splits"]
    assert finding.severity == "warning"
    assert finding.places == (f"{folder}/train.jsonl:20 = {folder}/test.jsonl:1",)
    fixed = write_fixed(checked, tmp_path / "out.jsonl")
    assert (fixed.kept, fixed.dropped) == (19, {"among the held-out rows": 1})


def test_faults_of_several_packed_files_are_all_told(tmp_path) -> None:
    lines = [json.dumps(row) for row in rows(0, 3)]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join([lines[0], "{", *lines[1:]]).encode()))
    report = check(str(tmp_path)).report
    (fault,) = report.of("fault")
    assert fault.places == (f"{tmp_path}/a.jsonl.gz:2", f"{tmp_path}/b.jsonl.gz:2")
    assert report.rows == 8


def test_mapped_columns(tmp_path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"ask": "what?", "tell": "this", "n": 1}, {"ask": "", "tell": "b", "n": 2}]
    )
    unmapped = check(str(path)).report
    (fault,) = unmapped.of("fault")
    assert fault.what == "columns 'ask', 'tell', 'n' have no known shape"
    assert "--map" in str(fault.fix)
    assert "what?" not in json.dumps(unmapped.to_dict())
    checked = check(str(path), mapping="prompt=ask,completion=tell")
    assert checked.report.format == "prompt=ask,completion=tell"
    assert checked.report.usable_rows == 1
    write_fixed(checked, tmp_path / "out.jsonl")
    assert [row.fields for row in stream_rows(str(tmp_path / "out.jsonl"))] == [
        {"ask": "what?", "tell": "this", "n": 1}
    ]


def test_how_rows_were_read_is_a_note(tmp_path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    (note,) = [note for note in check(str(path)).report.of("note") if note.kind == "reading"]
    assert note.rows == 2
    assert note.what == "of preference pairs only the chosen answers are trained"
