"""Files as people have them: JSON of every form, what Excel and pandas write, encodings, and what is no data at all."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from autoft.errors import DataError
from autoft.trainer.data.check.examine import check
from autoft.trainer.data.load import load_data
from autoft.trainer.data.read import open_data, read_rows

ROWS = [{"prompt": f"q{n}", "completion": f"r{n}"} for n in range(12)]
TALKS = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": f"r{n}"}] for n in range(3)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("prompt", "completion")}
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
SPLITS = {"train": ROWS[:9], "test": ROWS[9:]}
FIELD = Path(__file__).parents[2].parent / "shared" / "data" / "field"


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def fields(path: str) -> list[dict[str, object]]:
    return [row.fields for row in read_rows(path)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        LINES, LINES.replace("\n", "\r\n\r\n"), json.dumps(ROWS), json.dumps(ROWS, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in ROWS), json.dumps({"version": 1, "rows": ROWS}),
        json.dumps(COLUMNS), json.dumps(COLUMNS, indent=1),
        json.dumps({name: dict(zip(map(str, range(12)), column, strict=True)) for name, column in COLUMNS.items()}),
        json.dumps({str(n): row for n, row in enumerate(ROWS)}),
        json.dumps({"columns": ["prompt", "completion"], "index": [*range(12)], "data": [[*r.values()] for r in ROWS]}),
    ],
)  # fmt: skip
def test_json_of_every_form_is_read_whatever_its_suffix(tmp_path, suffix, text) -> None:
    assert fields(write(tmp_path / f"a{suffix}", text)) == ROWS
    assert fields(write(tmp_path / f"a{suffix}.gz", gzip.compress(text.encode()))) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TALKS), "".join(json.dumps(talk) + "\n" for talk in TALKS), json.dumps({"messages": TALKS}),
        json.dumps([{"messages": talk} for talk in TALKS]),
    ],
)  # fmt: skip
def test_conversations_without_a_column_of_their_own(tmp_path, text) -> None:
    assert fields(write(tmp_path / "a.json", text)) == [{"messages": talk} for talk in TALKS]


def test_one_conversation_is_one_row_and_no_table(tmp_path) -> None:
    for text in (json.dumps({"messages": TALKS[0]}), json.dumps({"messages": TALKS[0]}, indent=1)):
        assert fields(write(tmp_path / "a.json", text)) == [{"messages": TALKS[0]}]
    assert fields(write(tmp_path / "a.json", json.dumps({"dialog": ["q", "r"]}))) == [{"dialog": ["q", "r"]}]


def test_rows_of_objects_over_several_lines_are_placed_where_they_begin(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS[:2]))
    assert [row.where for row in read_rows(path)] == [f"{path}:1", f"{path}:5"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize(
    "value", [SPLITS, {"version": "1", **SPLITS}, {"train": ROWS[:9], "validation": ROWS[9:], "test": ROWS[:2]}]
)
def test_an_object_of_splits_is_read_as_its_splits(tmp_path, name, value) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1)):
        packed = gzip.compress(text.encode()) if name.endswith("gz") else text
        data = load_data(write(tmp_path / name, packed))
        assert ([row.messages[0]["content"] for row in data.train], len(data.heldout)) == (COLUMNS["prompt"][:9], 3)
        assert data.notes[0].startswith("held out: 3 rows of its split")
    report = check(str(tmp_path / name)).report
    assert (report.rows, report.eval_rows) == (9, 3)


def test_an_object_of_splits_among_other_files_is_named(tmp_path) -> None:
    write(tmp_path / "a.json", json.dumps(SPLITS))
    write(tmp_path / "b.jsonl", LINES)
    with pytest.raises(DataError, match=r"a\.json: holds the splits train, test"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("sep=;\nprompt;completion\nq;r\n", 2), ('"sep=;"\r\nprompt;completion\r\nq;r\r\n', 2),
        ("sep=\t\nprompt\tcompletion\nq\tr\n", 2), ("prompt;completion;;\nq;r;;\n;;;\n", 1),
        ("prompt,,completion\nq,,r\n", 1), ("prompt,completion\nq,r,,\n", 1), ("prompt, completion\nq,r\n\n,\n", 1),
        ("prompt|completion\nq|r\n", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_excel_adds_is_no_fault(tmp_path, text, header, encoding) -> None:
    path = write(tmp_path / "a.csv", text, encoding)
    (row,) = read_rows(path)
    assert (row.fields, row.where) == ({"prompt": "q", "completion": "r"}, f"{path}:{header + 1}")


def test_columns_without_a_name(tmp_path) -> None:
    path = write(tmp_path / "a.csv", ",prompt,completion\n0,q,r\n1,s,t\n")
    assert fields(path)[1] == {"index": "1", "prompt": "s", "completion": "t"}
    assert load_data(path).notes == ("not used: column index",)
    path = write(tmp_path / "b.csv", "prompt,,completion\nq,,r\ns,x,t\n")
    (fault,) = check(path).report.of("fault")
    assert (fault.what, fault.places) == ("column 2 has text, but no name", (f"{path}:3",))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_text_of_windows_tools_is_read(tmp_path, encoding) -> None:
    rows = [*ROWS, {"prompt": "wärmer?\u4e2d", "completion": "ja\U0001f600"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert fields(write(tmp_path / "a.jsonl", text, encoding)) == rows
    assert fields(write(tmp_path / "b.json", json.dumps(rows, indent=1), encoding)) == rows
    assert fields(write(tmp_path / "c.txt", "ärger\n", encoding)) == [{"text": "ärger\n"}]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456\n"
PAGE = "\n<!DOCTYPE html>\n<html><body>\n404\n</body></html>\n"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        *((f"a{suffix}", POINTER, "a Git LFS pointer") for suffix in (".jsonl", ".csv", ".parquet", ".txt")),
        *((f"a{suffix}", PAGE, "a web page") for suffix in (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")),
        ("a.json", "<?xml version='1.0'?>\n<Error/>", "a web page or XML"),
        ("a.csv", b"PK\x03\x04\x00", "a ZIP archive or an Excel workbook, not .csv"),
        ("a.jsonl", gzip.compress(LINES.encode()), "packed with gzip, not .jsonl"),
        ("a.jsonl", b"PAR1\x00\x00", "a Parquet file, not .jsonl"),
        ("a.json", json.dumps({"prompt": ["a", "b"], "completion": ["c"]}),
         "its columns differ in length: prompt 2, completion 1"),
        ("a.jsonl", LINES.encode("utf-16") + b"\x00", "starts with a UTF-16 mark but is not UTF-16 text"),
        ("a.xlsx", b"PK\x03\x04", ".xlsx is not a known kind of data"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_named_once(tmp_path, name, content, what) -> None:
    path = write(tmp_path / name, content)
    for read in (load_data, check):
        with pytest.raises(DataError) as refused:
            read(path)
        assert refused.value.what.startswith(f"{path}: {what}")
        assert refused.value.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{\n" + LINES, "a.jsonl:1: not JSON: Expecting property name"),
        ("[" + LINES, "a.jsonl:2: not JSON: Expecting ',' delimiter"),
        (LINES.replace("\n", ",\n"), "a.jsonl:1: a comma after the object"),
        ("- prompt: q\n", "a.jsonl:1: not JSON: Expecting value"),
    ],
)
def test_broken_json_is_named_where_it_breaks(tmp_path, text, what) -> None:
    with pytest.raises(DataError) as refused:
        read_rows(write(tmp_path / "a.jsonl", text))
    assert refused.value.what.removeprefix(f"{tmp_path}/").startswith(what)


def test_text_files_may_hold_a_web_page(tmp_path) -> None:
    assert fields(write(tmp_path / "a.md", PAGE)) == [{"text": PAGE.lstrip("\n")}]


# --- inputs that people reported, where they are beside the checkout -----------------------------------------------

READ = {
    "kto_chat.json": "6 of 12 rows are left out: label false marks a bad answer",
    "kto_tag.jsonl": "6 of 12 rows are left out: kto_tag false marks a bad answer",
    "turns_not_to_train.jsonl": "are context only",
    "thought_column.jsonl": "Complex_CoT is taken as the reasoning",
    "choice_columns.jsonl": "options are put into the prompt",
    "choice_list_and_letter.jsonl": "options are put into the prompt",
    "choices_answer_key.jsonl": "options are put into the prompt",
    "prompt_already_rendered.jsonl": "prompts were rendered already (ChatML)",
    "answer_ends_with_stop_token.jsonl": "stop tokens that answers end with",
    "prompt_rendered_alpaca.jsonl": "a frame of their own",
    "splits_in_one_object.json": "held out: 3 rows of its split 'test'",
    "dpo_sharegpt.json": "only the chosen answers are trained",
    "table_as_lists.json": "", "json_list.jsonl": "", "excel_empty_columns.csv": "", "excel_sep_line.csv": "",
    "utf16.jsonl": "", "instruction_empty_input_full.json": "", "reasoning_content.jsonl": "",
    "plain_one_turn.jsonl": "", "plain_two_turns.jsonl": "", "call_beside_text.jsonl": "", "calls_openai.jsonl": "",
    "calls_sharegpt.json": "", "calls_legacy.jsonl": "",
}  # fmt: skip
REFUSED = {
    "picture_placeholder.json": ("a picture or a sound", "leave such rows out"),
    "message_tree.jsonl": ("one message of a conversation", "put each conversation together"),
    "lfs_pointer.jsonl": ("a Git LFS pointer", "git lfs pull"),
    "answers_as_list.jsonl": ("answer is a list of 2 texts", "--map completion=answer.0"),
    "dialogue_and_summary.jsonl": ("dialogue is a text", "--map prompt=dialogue,completion=summary"),
    "conversation_as_text.jsonl": ("lines such as 'User:'", "--map text=conversation"),
    "squad_columns.jsonl": ("no known shape", "{context}\\n\\n{question},completion=answers.text.0"),
}


@pytest.mark.skipif(not FIELD.is_dir(), reason="the reported inputs are not beside this checkout")
@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_reported_inputs(tmp_path, name) -> None:
    path = str(shutil.copy(FIELD / name, tmp_path))
    if name in READ:
        data = load_data(path)
        assert READ[name] in "; ".join(data.notes)
        assert (len(data.notes) > 0) >= bool(READ[name])
        assert open_data(path).train is not None
        return
    what, fix = REFUSED[name]
    with pytest.raises(DataError) as refused:
        load_data(path)
    assert what in refused.value.what
    assert fix in str(refused.value.fix)
