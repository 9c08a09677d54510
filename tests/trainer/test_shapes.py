"""What rows of many shapes become, with and without --map."""

from __future__ import annotations

import json

import pytest

from autoft.errors import DataError, OptionError
from autoft.trainer.data.layout import CLASSIFIED
from autoft.trainer.data.load import load_data
from autoft.trainer.data.mapping import parse_mapping, propose
from autoft.trainer.data.read import RawRow
from autoft.trainer.data.shape import (
    ALTERNATING,
    NUMBERS,
    PREFERRED,
    recognise,
    shape_of,
    shown,
)
from tests.conftest import write_jsonl

ASK = {"role": "user", "content": "a"}
TELL = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


def one(fields, words=None):
    (row,) = recognise([RawRow(fields, "f:1")], parse_mapping(words) if words else None)
    return row


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({"conversation": [{"speaker": "Human", "text": "a"}, {"speaker": "bot", "text": "b"}]}, [ASK, TELL]),
        ({"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
         [SYSTEM, ASK, TELL]),
        ({"system": "t", "messages": [SYSTEM, ASK, TELL]}, [SYSTEM, ASK, TELL]),
        ({"messages": json.dumps([ASK, TELL])}, [ASK, TELL]),
        ({"messages": [{**ASK, "content": [{"type": "text", "text": "a"}]}, TELL], "prompt": None}, [ASK, TELL]),
        ({"instruction": "a", "context": "c", "response": "b", "category": "x"}, [{**ASK, "content": "a\n\nc"}, TELL]),
        ({"instruction": "c", "input": None, "output": "d", "history": [["a", "b"]], "system": "s"},
         [SYSTEM, ASK, TELL, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]),
        ({"problem": "a", "solution": "b", "answer": "c"}, [ASK, TELL]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [ASK, TELL]),
        ({"prompt": "x", "chosen": [ASK, TELL], "rejected": [ASK]}, [ASK, TELL]),
        ({"prompt": "a", "chosen": [TELL], "rejected": [TELL]}, [ASK, TELL]),
        ({"prompt": [SYSTEM, ASK], "chosen": [TELL], "rejected": [TELL]}, [SYSTEM, ASK, TELL]),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "x"},
         [ASK, TELL, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]),
        ({"question": "a", "answer": 3}, [ASK, {**TELL, "content": "3"}]),
        ({"text": "a", "label": 2, "label_text": "b"}, [ASK, TELL]),
    ],
)  # fmt: skip
def test_shapes_become_one_conversation(fields, turns) -> None:
    assert list(one(fields).messages) == turns


@pytest.mark.parametrize(
    ("fields", "remark"),
    [
        ({"prompt": "a", "completion": "b"}, ()),
        ({"prompt": "a", "completion": 2.5}, (NUMBERS,)),
        ({"text": "a", "label": 2}, (CLASSIFIED, NUMBERS)),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, (PREFERRED,)),
        ({"dialog": ["a", "b"]}, (ALTERNATING,)),
        ({"prompt": "a", "completion": "b", "label": True}, ()),
    ],
)
def test_what_is_taken_for_something_is_said(fields, remark) -> None:
    assert one(fields).remarks == remark


@pytest.mark.parametrize(
    ("fields", "words", "turns"),
    [
        ({"q": "a", "reply to it": "b"}, "prompt=q,completion=reply to it", [ASK, TELL]),
        ({"Q": "a", "x": {"en": ["b"]}}, "prompt=q, completion=x.en", [ASK, {**TELL, "content": "b"}]),
        ({"t": "a", "u": 1, "l": "b"}, r"prompt={t}\n{u}, {{x}},completion=l",
         [{**ASK, "content": "a\n1, {x}"}, TELL]),
        ({"t": "a", "l": "b"}, "prompt=t,completion=l,system=You are s.",
         [{**SYSTEM, "content": "You are s."}, ASK, TELL]),
        ({"t": "a", "l": "b", "s": "s"}, "system=s,prompt=t,completion=l", [SYSTEM, ASK, TELL]),
        ({"log": [ASK, TELL], "text": "c"}, "messages=log", [ASK, TELL]),
        ({"q": "a", "good": "b"}, "prompt=q,chosen=good", [ASK, TELL]),
        ({"good": [ASK, TELL]}, "chosen=good", [ASK, TELL]),
    ],
)  # fmt: skip
def test_a_mapping_makes_any_columns_a_conversation(fields, words, turns) -> None:
    if words.endswith("x.en"):
        fields["x"]["en"] = "b"
    assert list(one(fields, words).messages) == turns


def test_a_mapping_makes_a_text_of_columns_and_what_is_null_is_empty() -> None:
    row = one({"title": "t", "body": None, "n": [1]}, r"text={title}:{body}\t{n}")
    assert (row.text, row.remarks) == ("t:\t[1]", ())
    assert one({"text": "a", "label": "b"}, "text=text").text == "a"


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        ("prompt=foo", "--map names prompt, and nothing to learn", "add completion=, chosen=, messages= or text="),
        ("completion=foo", "--map names a completion and no prompt", "add prompt=, or use text= for text alone"),
        ("prompt", "--map prompt: not of the form role=column",
         "role=column, such as --map prompt=question,completion=answer"),
        ("promt=foo", "--map promt=foo: no role 'promt'. Did you mean prompt?",
         "one of: prompt, completion, system, text, messages, chosen"),
        ("prompt=foo,systm=bar", "--map prompt=foo,systm=bar: no role 'systm'. Did you mean system?",
         "one of: prompt, completion, system, text, messages, chosen"),
        ("text=foo,text=bar", "--map names text twice", r'join columns in a template: "{first}\n{second}"'),
        ("text=foo,prompt=bar", "--map names text and prompt, which do not go together", "leave one of them out"),
        ("text={foo", "--map text={foo: expected '}' before end of string", 'a column in braces: "{title}"'),
        ("text={}", "--map text={}: braces without a column", 'a column in braces: "{title}"'),
        ("messages={foo}", "--map messages={foo}: turns cannot be made of text", "name one column"),
    ],
)  # fmt: skip
def test_words_that_are_no_mapping(words, what, fix) -> None:
    with pytest.raises(OptionError) as refused:
        parse_mapping(words)
    assert (refused.value.what, refused.value.fix) == (what, fix)


def test_a_column_that_a_row_lacks_is_named_with_its_row() -> None:
    mapping = parse_mapping("prompt=title,completion=summary")
    rows = [RawRow({"title": "a", "summary": "b"}, "f:1"), RawRow({"title": "a", "sumary": "b"}, "f:2")]
    with pytest.raises(DataError) as refused:
        recognise(rows, mapping)
    assert refused.value.what == "f:2: --map completion: no column 'summary'. Did you mean sumary?"
    assert refused.value.fix == "one of: title, sumary"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": "x1", "article": "a", "highlights": "b"}, "prompt=article,completion=highlights"),
        ({"summary": "b", "document": "a"}, "prompt=document,completion=summary"),
        ({"review": "a", "category": 1}, "prompt=review,completion=category"),
        ({"foo": "a", "bar": "b"}, "prompt=foo,completion=bar"),
        ({"url": "x", "body": "a"}, "text=body"),
        ({"log": [ASK, TELL]}, "messages=log"),
        ({"n": 1}, None),
        ({}, None),
    ],
)
def test_unknown_columns_are_shown_a_mapping_that_works(fields, words) -> None:
    assert propose(fields) == words
    with pytest.raises(DataError) as refused:
        shape_of(RawRow(fields, "f:1"))
    assert "have no known shape" in refused.value.what
    if words:
        row = one(fields, words)
        assert f"for example --map {words}, which makes of it: {shown(row)}; without" in str(refused.value.fix)


def test_a_row_is_shown_short() -> None:
    assert shown(one({"prompt": "a\n b" * 99, "completion": "c"})) == f"user '{('a b' * 19)}...', assistant 'c'"
    assert shown(one({"text": "a"})) == "text 'a'"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"messages": [{"role": "user", "content": None}, TELL]}, "f:1: turn 1 has no text content"),
        ({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [1]}]},
         "f:1: turn 2 calls a tool without a name"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TELL]},
         "f:1: turn 1 holds an image, and autoft trains on text alone"),
        ({"question": "a", "answer": {"text": ["b"]}}, "f:1: answer is dict, not text"),
        ({"question": "a", "context": ["c"], "answer": "b"}, "f:1: context is list, not text"),
        ({"prompt": "a", "completion": float("nan")}, "f:1: completion is float, not text"),
        ({"prompt": "a", "output": "b", "history": ["c"]}, "f:1: history is not a list of [question, answer]"),
        ({"chosen": "b", "rejected": "c"}, "f:1: chosen is a text, and the row has no prompt"),
    ],
)  # fmt: skip
def test_rows_that_teach_nothing_are_refused(fields, what) -> None:
    with pytest.raises(DataError) as refused:
        one(fields)
    assert refused.value.what == what


def test_notes_say_how_the_data_was_read(tmp_path) -> None:
    rows = [{"q": "a", "a": n} for n in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert load_data(str(path), mapping="prompt=q,completion=a").notes == (
        f"--map prompt=q,completion=a: {path}:1 reads user 'a', assistant '0'",
        NUMBERS,
    )
    write_jsonl(path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 2}])
    assert load_data(str(path)).notes == (f"{NUMBERS} (1 rows, the first at {path}:2)",)
