"""A check of whole files: every kind of trouble is found where it is, and a cleaned copy has none that stops a run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autoft.errors import DataError, OptionError
from autoft.trainer.data.check.examine import check
from autoft.trainer.data.check.fix import write_fixed
from autoft.trainer.data.check.report import Report
from autoft.trainer.data.check.scan import Scan
from autoft.trainer.data.check.tally import MOST_KINDS, Faults, Places
from autoft.trainer.data.load import load_data
from autoft.trainer.data.read import stream_rows
from tests.conftest import make_tokenizer, write_jsonl

BREAD = "Please tell me how to bake a good loaf of bread at home with flour, water, salt and yeast in a small oven."
ANSWER = "Mix the flour with the water, add salt and yeast, knead it well, let it rest for an hour and bake it hot."
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def pair(prompt: str, answer: str) -> dict[str, Any]:
    return chat(("user", prompt), ("assistant", answer))


# Line by line; what is expected of each is in the test below
MESSY: list[Any] = [
    pair(BREAD, ANSWER),
    pair(BREAD.upper(), f"{ANSWER} "),
    pair(BREAD.replace("small", "tiny"), ANSWER),
    "{cut off",
    chat(("user", "no answer")),
    chat(("assistant", "hello"), ("user", "y")),
    pair("cafÃ©", "a bell \x07"),
    pair("your key?", KEY),
    pair("jane.doe@example.com, +44 20 7946 0958", "4111 1111 1111 1111, DE89370400440532013000, 8.8.8.8"),
    pair("", "an answer to nothing"),
    chat(("user", "a"), ("user", "b"), ("assistant", "  c  \n\n"), id=7),
    {"prompt": "p", "completion": "q"},
    chat(("robot", "a"), ("assistant", "b")),
    chat(("system", "s"), ("assistant", "b")),
    pair("echo this", "echo this"),
    chat(("user", "a"), ("system", "s"), ("assistant", "b")),
    pair("zero\u200bwidth", "a &amp; b \u202e \ufffd"),
    pair("your key?", "I have none"),
    [1, 2],
]


def write_lines(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def messy(tmp_path) -> str:
    return write_lines(tmp_path / "messy.jsonl", MESSY)


def lines(report: Report, kind: str) -> list[list[str]]:
    """The places of each finding of a kind, as line numbers."""
    folder = str(Path(report.data).parent) + "/"
    return [
        [place.replace(folder, "").replace("messy.jsonl:", "") for place in finding.places]
        for finding in report.findings
        if finding.kind == kind
    ]


def test_every_kind_of_trouble_is_found_where_it_is(messy) -> None:
    report = check(messy).report
    assert not report.usable
    assert (report.rows, report.usable_rows, report.format) == (19, 13, "messages")
    assert lines(report, "broken") == [["4"], ["5"], ["6"], ["13"], ["19"]]
    assert [finding.what for finding in report.of("fault")] == [
        "not JSON: Expecting property name enclosed in double quotes at column 2",
        "the conversation ends with the user, so there is no answer to learn",
        "the conversation begins with the assistant, so there is nothing to answer",
        "turn 1 has role 'robot'",
        "a JSON list, not an object",
        "columns differ from most rows (messages)",
    ]
    expected = {
        "other-shape": ["12"],
        "exact-duplicates": ["2 = 1"],
        "empty-turn": ["10"],
        "no-user": ["14"],
        "same-role-twice": ["11"],
        "late-system": ["16"],
        "echo": ["15"],
        "aws-access-key": ["8"],
        "e-mail-address": ["9"],
        "phone-number": ["9"],
        "payment-card": ["9"],
        "iban": ["9"],
        "ip-address": ["9"],
        "control": ["7"],
        "mojibake": ["7"],
        "invisible": ["17"],
        "direction": ["17"],
        "replaced": ["17"],
        "html": ["17"],
        "several-answers": ["18 = 8"],
    }
    assert {kind: lines(report, kind) for kind in expected} == {kind: [place] for kind, place in expected.items()}
    assert [place.split(" (")[0] for place in lines(report, "near-duplicates")[0]] == ["3 ~ 1"]
    others = {"broken", "near-duplicates", "not-compared", "unused", *expected}
    assert {finding.kind for finding in report.findings} == others


def test_the_report_is_json_and_shows_no_text_but_the_example_s(messy) -> None:
    report = check(messy).report
    told = json.dumps(report.to_dict())
    for secret in (KEY, "jane.doe", "7946", "4111", "DE8937", "8.8.8.8"):
        assert secret not in told
    assert Report.from_dict(json.loads(told)) == report
    assert report.example is not None
    assert report.example.where.endswith(":1")
    assert [segment.text for segment in report.example.segments if segment.trained] == [ANSWER]


def test_the_example_is_never_a_row_with_keys_or_personal_data(tmp_path) -> None:
    rows = [pair("q", KEY), pair("mail", "a.b@example.com"), pair("plain", "row")]
    example = check(write_lines(tmp_path / "a.jsonl", rows)).report.example
    assert example is not None
    assert example.where.endswith(":3")
    assert check(write_lines(tmp_path / "b.jsonl", rows[:2])).report.example is None


def test_a_cleaned_copy_has_no_fault_and_keeps_columns(messy, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    fixed = write_fixed(check(messy), out)
    again = check(str(out)).report
    assert again.usable
    assert not again.of("fault")
    assert again.rows == fixed.kept == 11
    repaired = {"exact-duplicates", "control", "invisible", "direction", "aws-access-key"}
    assert not repaired & {finding.kind for finding in again.findings}
    rows = [row.fields for row in stream_rows(str(out))]
    assert rows[0] == MESSY[0]
    assert {"messages": [*MESSY[10]["messages"][:2], {"role": "assistant", "content": "  c"}], "id": 7} in rows
    assert load_data(str(out)).train
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text(encoding="utf-8"))
    assert report["kept"] == 11
    assert report["rows"] == 19
    assert report["changed"] == {"invisible characters removed": 2, "white space trimmed": 2}
    dropped = {entry["where"].rsplit(":", 1)[1]: (entry["reason"], entry["why"]) for entry in report["dropped"]}
    assert {line: reason for line, (reason, _) in dropped.items()} == {
        "2": "duplicate", "4": "broken", "5": "broken", "6": "broken", "8": "holds a secret", "12": "another shape",
        "13": "broken", "19": "broken",
    }  # fmt: skip
    assert dropped["2"][1] == f"says the same as {messy}:1"
    assert dropped["13"][1] == "turn 1 has role 'robot'"
    assert KEY not in out.read_text(encoding="utf-8") + json.dumps(report)


def test_a_copy_stays_where_what_it_copies_cannot_be_trained(tmp_path) -> None:
    rows = [{"prompt": "p", "completion": "q"}, pair("p", "q"), pair("r", "s")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    write_fixed(check(path), tmp_path / "out.jsonl")
    assert [row.fields for row in stream_rows(str(tmp_path / "out.jsonl"))] == rows[1:]


def test_rows_that_become_empty_by_cleaning_are_dropped(tmp_path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [pair("a", "b"), pair("c", "\u200b\x00")])
    fixed = write_fixed(check(path), tmp_path / "out.jsonl")
    assert (fixed.kept, fixed.dropped) == (1, {"broken": 1})


def test_plain_texts_keep_their_white_space(tmp_path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "\n  one\x00 \n"}, {"text": "two"}])
    write_fixed(check(path), tmp_path / "out.jsonl")
    assert [row.fields["text"] for row in stream_rows(str(tmp_path / "out.jsonl"))] == ["\n  one \n", "two"]


def test_a_copy_is_never_written_over_anything(tmp_path, messy) -> None:
    checked = check(messy)
    (tmp_path / "out.jsonl.report.json").write_text("mine", encoding="utf-8")
    for out, message in (
        (tmp_path / "out.jsonl", r"out\.jsonl\.report\.json is there already"),
        (Path(messy), r"messy\.jsonl is there already"),
        (tmp_path / "out.csv", "the copy is JSONL"),
        (tmp_path / "no" / "out.jsonl", "no such folder"),
    ):
        with pytest.raises(OptionError, match=message):
            write_fixed(checked, out)
    nothing = write_lines(tmp_path / "nothing.jsonl", [chat(("user", "a"))])
    with pytest.raises(DataError, match="no row could be kept"):
        write_fixed(check(nothing), tmp_path / "kept.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messy.jsonl", "nothing.jsonl", "out.jsonl.report.json"]


def test_rows_in_both_splits(tmp_path) -> None:
    other = "Where is the station, and how do I get there from the old town hall?"
    train = [pair(BREAD, ANSWER), pair(BREAD.replace("good", "fine"), ANSWER), pair("x", "y"), pair(other, "Go left.")]
    heldout = [pair(f"  {BREAD.lower()}", ANSWER), pair(other, "Take the tram to the harbour instead, then walk back.")]
    path = write_lines(tmp_path / "a.jsonl", train)
    checked = check(path, write_lines(tmp_path / "b.jsonl", heldout))
    report = checked.report
    assert not report.usable
    assert report.eval_rows == 2
    folder = f"{tmp_path}/"
    places = {finding.kind: [place.replace(folder, "") for place in finding.places] for finding in report.findings}
    assert places["in-both-splits"] == ["a.jsonl:1 = b.jsonl:1"]
    assert places["nearly-in-both-splits"][0].startswith("a.jsonl:2 ~ b.jsonl:1 (")
    assert places["prompt-in-both-splits"] == ["a.jsonl:4 = b.jsonl:2"]
    fixed = write_fixed(checked, tmp_path / "out.jsonl")
    assert fixed.dropped == {"among the held-out rows": 1}
    assert check(str(tmp_path / "out.jsonl"), str(tmp_path / "b.jsonl")).report.usable


def test_faults_of_held_out_rows_are_faults(tmp_path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", [pair("a", "b")])
    bad = write_jsonl(tmp_path / "b.jsonl", [chat(("user", "a"))])
    checked = check(str(good), str(bad))
    (fault,) = checked.report.of("fault")
    assert fault.what.startswith("held-out rows: the conversation ends with the user")
    # a copy of the training rows does not mend them
    fixed = write_fixed(checked, tmp_path / "out.jsonl")
    assert not replace(checked.report, fixed=fixed).trainable


def test_unknown_columns_are_one_fault(tmp_path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"titel": "a", "n": n} for n in range(9)])
    report = check(str(path)).report
    assert (report.format, report.usable_rows, report.lengths, report.example) == (None, 0, None, None)
    (fault,) = report.of("fault")
    assert fault.what == "columns 'titel', 'n' have no known shape"
    assert (fault.rows, len(fault.places)) == (9, 5)


def test_lengths_without_a_model_are_estimates(tmp_path) -> None:
    rows = [{"prompt": "a" * 16 * n, "completion": "b" * 16 * n} for n in range(1, 101)]
    lengths = check(str(write_jsonl(tmp_path / "a.jsonl", rows))).report.lengths
    assert lengths is not None
    assert lengths.estimated
    assert lengths.context is None
    assert lengths.characters.percentiles["50"] == 50 * 32
    assert lengths.tokens.percentiles["50"] == 50 * 10 + 10
    assert lengths.words.total == 200
    assert lengths.trained_share == 0.5
    assert [(limit.tokens, limit.rows) for limit in lengths.truncated] == [(256, 76), (512, 50), (1024, 0)]
    assert sum(bin_.rows for bin_ in lengths.histogram) == 100
    assert [place.where.rsplit(":", 1)[1] for place in lengths.longest] == ["100", "99", "98", "97", "96"]


def test_lengths_with_a_model_are_its_own(tmp_path, tiny_model) -> None:
    rows = [pair("a" * n, "b" * 10) for n in (1, 100, 600)]
    report = check(str(write_jsonl(tmp_path / "a.jsonl", rows)), model=str(tiny_model)).report
    lengths = report.lengths
    assert lengths is not None
    # <|im_start|>user\n ... <|im_end|>\n<|im_start|>assistant\n ... <|im_end|>\n, a token a byte
    around = len("user\n") + len("\n") + len("assistant\n") + len("\n") + 4
    assert [place.length for place in lengths.longest] == [around + 10 + n for n in (600, 100, 1)]
    assert lengths.trained_share == pytest.approx(3 * 11 / lengths.tokens.total)
    assert lengths.context == 512
    assert [(limit.tokens, limit.rows) for limit in lengths.truncated] == [(256, 1), (512, 1)]
    (warning,) = [finding for finding in report.of("warning") if finding.kind == "too-long"]
    assert warning.what == "longer than the model's 512 tokens: left out of training"
    assert report.usable
    assert report.example is not None
    assert report.example.template == "model"
    trained = [segment.text for segment in report.example.segments if segment.trained]
    assert trained == ["b" * 10 + "<|im_end|>"]
    everything = "".join(segment.text for segment in report.example.segments)
    assert everything == f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{'b' * 10}<|im_end|>\n"


def test_rows_that_the_model_s_template_refuses_are_faults(tmp_path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    from autoft.trainer.data.check.lengths import Meter

    rows = [pair(str(n), "x") for n in range(5)]
    rows[3] = chat(("user", "a"), ("tool", "b"), ("assistant", "c"))
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    scan = Scan(partial(stream_rows, str(path)), Meter("tiny", tokenizer, 512, None)).read()
    (fault,) = scan.faults.values()
    assert fault.what == "the model's chat template refuses the roles user, tool, assistant: no tools"
    assert fault.count.places == [f"{path}:4"]
    assert [bool(tokens) for tokens in scan.tokens] == [True, True, True, False, True]


def test_all_rows_too_long_is_a_fault(tmp_path, tiny_model) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [pair("a" * 600, "b")])
    report = check(str(path), model=str(tiny_model)).report
    assert not report.usable
    assert [finding.kind for finding in report.of("fault")] == ["all-too-long"]


def test_the_bundled_task_has_nothing_wrong() -> None:
    report = check("starter").report
    assert report.usable
    assert (report.rows, report.eval_rows) == (400, 100)
    assert report.findings == ()


def test_batches_make_no_difference(tmp_path, monkeypatch) -> None:
    path = write_lines(tmp_path / "messy.jsonl", MESSY)
    whole = check(path).report
    monkeypatch.setattr("autoft.trainer.data.check.scan.BATCH_CHARACTERS", 50)
    assert check(path).report == whole


def test_reading_goes_on_after_a_line_that_is_no_row(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\n{"cut":\n\n[2]\n{"n": "\xff"}\n{"n": 3}\n')
    faults: list[DataError] = []
    rows = list(stream_rows(str(path), on_fault=faults.append))
    assert [(row.fields["n"], row.where) for row in rows] == [(1, f"{path}:1"), (3, f"{path}:6")]
    assert [fault.what.split(": ")[0] for fault in faults] == [f"{path}:{line}" for line in (2, 4, 5)]
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\nc\nd,e\n", encoding="utf-8")
    rows = list(stream_rows(str(tmp_path / "a.csv"), on_fault=faults.append))
    assert [row.fields["prompt"] for row in rows] == ["a", "d"]
    assert faults[-1].what == f"{tmp_path}/a.csv:3: 1 cells, but the header has 2"


def test_places_come_back_as_they_were() -> None:
    wheres = ["a.jsonl:1", "a.jsonl:20", "b 2.parquet: row 3", "c.txt", "d:007", "a.jsonl:3", f"e:{10**18}"]
    places = Places()
    for where in wheres:
        places.add(where)
    assert [places[index] for index in range(len(places))] == wheres


def test_kinds_of_faults_are_bounded() -> None:
    faults = Faults()
    for number in range(100):
        faults.add(f"f:{number}", f"turn {number} has role '{chr(65 + number)}'", None)
    assert len(faults) == MOST_KINDS + 1
    assert sum(fault.count.rows for fault in faults.values()) == 100
