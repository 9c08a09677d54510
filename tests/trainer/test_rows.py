"""No field of a row is dropped without a word: it is used, named as unused, or the row is refused or left out."""

from __future__ import annotations

import json

import pytest

from autoft.errors import DataError
from autoft.trainer.data import choices, rendered
from autoft.trainer.data.check.examine import check
from autoft.trainer.data.check.fix import write_fixed
from autoft.trainer.data.conversation import AFTER, CONTEXT, UNTRAINED
from autoft.trainer.data.load import load_data
from autoft.trainer.data.mapping import parse_mapping, propose
from autoft.trainer.data.read import RawRow, read_rows
from autoft.trainer.data.shape import PREFERRED, Row, convert_rows, names_of
from autoft.trainer.data.split import row_key
from tests.conftest import write_jsonl

ASK = {"role": "user", "content": "q"}
TELL = {"role": "assistant", "content": "r"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PAIR = {"prompt": "q", "completion": "r"}
OPTIONS = "q\n\nA. Lisbon\nB. Bonn"


def one(fields, words=None) -> Row:
    (row,) = convert_rows([RawRow(fields, "f:1")], parse_mapping(words) if words else None)
    return row


def refused(fields) -> tuple[str, str]:
    with pytest.raises(DataError) as error:
        one(fields)
    return error.value.what.removeprefix("f:1: "), str(error.value.fix)


# --- answers that are marked as good or bad ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        PAIR,
        {"messages": [ASK, TELL]},
        {"instruction": "q", "input": "", "output": "r"},
        {"prompt": [ASK], "completion": [TELL]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]},
    ],
)
@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [("label", False, True), ("label", "false", "true"), ("Label", "False", "True"), ("label", 0, 1),
     ("label", 0.0, 1.0), ("label", "0", "1"), ("label", "bad", "good"), ("label", "undesirable", "desirable"),
     ("label", -1, 1), ("kto_tag", False, True), ("kto_tag", "false", "true"), ("desirable", False, True),
     ("undesirable", True, False),
     ("is_correct", 0, 1), ("feedback", "thumbs_down", "thumbs_up"), ("tag", "rejected", "chosen"),
     ("type", "rejected", "chosen")],
)  # fmt: skip
def test_answers_that_are_marked_as_bad_are_left_out_of_chats_and_pairs_alike(rest, name, bad, good) -> None:
    assert one({**rest, name: bad}).left_out == f"{name} {json.dumps(bad)} marks a bad answer"
    kept = one({**rest, name: good})
    assert (kept.left_out, kept.unused, kept.messages[-1]) == (None, (), TELL)


@pytest.mark.parametrize(
    ("name", "value"),
    [("label", "sports"), ("type", "no"), ("label", 3), ("rating", 1), ("score", 0.1), ("quality", 4), ("tag", "x")],
)
def test_a_column_that_marks_nothing_is_named_as_unused(name, value) -> None:
    row = one({**PAIR, name: value})
    assert (row.left_out, row.unused) == (None, (name,))


def test_a_label_beside_a_text_and_its_class_is_no_mark() -> None:
    row = one({"text": "a film", "label": 0, "label_text": "bad"})
    assert (row.left_out, row.unused, row.messages[-1]["content"]) == (None, ("label",), "bad")


def test_clear_marks_count_beside_a_mapping_too() -> None:
    for name in ("kto_tag", "label"):
        assert one({"q": "a", "a": "b", name: False}, "prompt=q,completion=a").left_out
    row = one({"q": "a", "a": "b", "label": 0, "id": 3}, "prompt=q,completion=a")
    assert (row.left_out, row.unused) == (None, ("label", "id"))


def test_rows_that_are_left_out_are_counted_and_never_held_out(tmp_path) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"r{n}", "label": n % 2 == 0} for n in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = load_data(str(path))
    numbers = sorted(int(row.messages[0]["content"][1:]) for side in (data.train, data.heldout) for row in side)
    assert numbers == list(range(0, 40, 2))
    assert (len(data.train), len(data.heldout)) == (18, 2)
    assert data.notes == (f"20 of 40 rows are left out: label false marks a bad answer, the first at {path}:2",)
    checked = check(str(path))
    assert (checked.report.rows, checked.report.usable_rows, checked.report.usable) == (40, 20, True)
    assert checked.report.format_share == 1
    (finding,) = [each for each in checked.report.findings if each.kind == "left-out"]
    assert (finding.severity, finding.rows, finding.places[0]) == ("note", 20, f"{path}:2")
    fixed = write_fixed(checked, tmp_path / "out.jsonl")
    assert (fixed.kept, fixed.dropped) == (20, {"not to be trained": 20})
    assert "label false marks a bad answer" in (tmp_path / "out.jsonl.report.json").read_text()


def test_data_of_which_every_row_is_left_out_is_refused_alike(tmp_path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "label": False}] * 3)
    with pytest.raises(DataError, match=r"a\.jsonl:1: no row is left to train: label false marks a bad answer"):
        load_data(str(path))
    report = check(str(path)).report
    assert not report.usable
    assert [finding.kind for finding in report.of("fault")] == ["all-left-out"]


# --- preference pairs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "r", "rejected": "w"},
        {"prompt": "q", "chosen": TELL, "rejected": {**TELL, "content": "w"}},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "r"},
         "rejected": {"from": "gpt", "value": "w"}},
        {"messages": [ASK], "chosen": "r", "rejected": "w"},
        {"messages": [ASK], "chosen": [TELL], "rejected": [TELL]},
        {"messages": [ASK], "chosen": [ASK, TELL], "rejected": [ASK, TELL]},
        {"input": {"messages": [ASK]}, "preferred_output": [TELL], "non_preferred_output": [TELL]},
        {"question": "q", "chosen_response": "r", "rejected_response": "w"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " r", "rejected": " w"},
    ],
)  # fmt: skip
def test_of_preference_pairs_of_every_form_the_chosen_answer_is_trained(fields) -> None:
    row = one(fields)
    assert (row.messages, row.unused) == ((ASK, TELL), ())
    assert row.remarks[0] == PREFERRED


def test_preference_data_that_does_not_say_which_answer_is_the_better_is_refused() -> None:
    _, fix = refused({"prompt": "q", "response_a": "r", "response_b": "s", "winner": "a"})
    assert "response_a and response_b are several" in fix
    assert "completion=response_a" not in fix
    assert refused({"messages": [ASK, TELL], "chosen": [TELL], "rejected": [TELL]})[0] == (
        "messages ends with an answer, and chosen is another"
    )
    assert one({"prompt": "x", "chosen": [ASK, TELL], "rejected": [ASK]}).unused == ("prompt",)


# --- turns that say whether they are trained -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag",
    [{"train": False}, {"train": "false"}, {"trainable": 0}, {"weight": 0}, {"weight": 0.0}, {"loss": False},
     {"loss_mask": 0}, {"masked": True}, {"mask": True}, {"ignore": 1}, {"training": False}, {"label": False}],
)  # fmt: skip
def test_an_answer_that_is_not_to_be_trained_is_context(flag) -> None:
    no = {**TELL, "train": False}
    row = one({"messages": [ASK, {**TELL, **flag}, ASK, TELL]})
    assert (row.messages, row.remarks, row.unused) == ((ASK, no, ASK, TELL), (CONTEXT,), ())
    assert one({"messages": [ASK, TELL, ASK, {**TELL, **flag}]}).messages == (ASK, TELL)
    assert one({"messages": [ASK, TELL, ASK, {**TELL, **flag}]}).remarks == (CONTEXT, AFTER)
    assert one({"messages": [ASK, {**TELL, **flag}]}).left_out == UNTRAINED


def test_flags_of_user_turns_and_of_rows() -> None:
    assert one({"messages": [{**ASK, "weight": 0}, {**TELL, "weight": 1}]}).unused == ()
    assert one({"messages": [{**ASK, "train": True}, TELL]}).unused == ("turns' train",)
    assert one({**PAIR, "train": False}).left_out == "train false marks a row that is not to be trained"
    assert one({**PAIR, "weight": 0.5}).unused == ("weight",)


@pytest.mark.parametrize("flag", [{"weight": 0.5}, {"mask": 1}, {"train": "some"}])
def test_a_flag_that_does_not_say_whether_a_turn_is_trained_is_refused(flag) -> None:
    (name, value) = next(iter(flag.items()))
    what, _ = refused({"messages": [ASK, {**TELL, **flag}]})
    assert what == f"turn 2 has {name} {json.dumps(value)}, which does not say whether it is trained"


# --- thoughts, calls of tools, and tools ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_thoughts_of_a_turn_are_kept_apart(name) -> None:
    row = one({"messages": [ASK, {**TELL, name: "hm"}]})
    assert (row.messages[1], row.unused) == ({**TELL, "reasoning_content": "hm"}, ())
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "r"}]
    assert one({"messages": [ASK, {**TELL, "content": parts}]}).messages[1] == {**TELL, "reasoning_content": "hm"}


def test_a_column_of_thoughts_is_the_answer_s_reasoning_or_named_as_unused() -> None:
    row = one({"Question": "q", "Complex_CoT": "hm", "Response": "r"})
    assert row.messages[1] == {**TELL, "reasoning_content": "hm"}
    assert row.remarks == ("Complex_CoT is taken as the reasoning before the answer",)
    for fields in ({"question": "q", "answer": "r", "cot": ["a"]}, {"messages": [ASK, TELL], "cot": "hm"},
                   {"prompt": "q", "chosen": "r", "rejected": "w", "cot": "hm"}):  # fmt: skip
        assert one(fields).unused == ("cot",)
    assert one({"question": "q", "cot": "hm", "answer": "<think>so</think>r"}).unused == ("cot",)


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}],
        [{"role": "assistant", "content": "", "tool_calls": json.dumps([{"name": "f", "arguments": {"x": 1}}])}],
        [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}],
        [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]}],
        [{"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}],
        [{"from": "tool_call", "value": '[{"name": "f", "parameters": {"x": 1}}]'}],
    ],
)
@pytest.mark.parametrize(
    "result",
    [{"role": "tool", "content": "5"}, {"role": "function", "content": "5"}, {"from": "observation", "value": "5"},
     {"role": "ipython", "content": 5}, {"role": "user", "content": [{"type": "tool_result", "content": "5"}]}],
)  # fmt: skip
def test_calls_of_tools_of_every_form_become_one_form(turns, result) -> None:
    row = one({"messages": [ASK, *turns, result, TELL], "tools": json.dumps([TOOL["function"]])})
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert row.messages == (ASK, called, {"role": "tool", "content": "5"}, TELL)
    assert (row.tools, row.unused, row.remarks) == ((TOOL,), (), ())


def test_a_text_and_the_call_after_it_are_one_answer() -> None:
    said = [{"from": "gpt", "value": "One moment."}, {"from": "function_call", "value": json.dumps(CALL["function"])}]
    row = one({"conversations": [{"from": "human", "value": "q"}, *said]})
    assert row.messages[1:] == ({"role": "assistant", "content": "One moment.", "tool_calls": [CALL]},)
    two = one({"conversations": [{"from": "human", "value": "q"}, said[1], said[1]]})
    assert two.messages[1]["tool_calls"] == [CALL, CALL]


def test_names_and_ids_of_calls_and_results_are_kept() -> None:
    call = {**CALL, "id": "call00001"}
    result = {"role": "tool", "content": {"t": 1}, "name": "f", "tool_call_id": "call00001"}
    row = one({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, result, TELL]})
    assert row.messages[1]["tool_calls"] == [call]
    assert row.messages[2] == {**result, "content": '{"t": 1}'}


def test_a_query_its_tools_and_the_calls_that_answer_it() -> None:
    row = one({"query": "q", "tools": [TOOL], "answers": '[{"name": "f", "arguments": {"x": 1}}]'})
    assert row.messages == (ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]})
    assert one({"messages": [ASK, TELL], "tools": "get_weather(city)"}).unused == ("tools",)


def test_a_call_that_cannot_be_read_is_refused_by_that_name() -> None:
    broken = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "x=1"}}
    assert refused({"messages": [ASK, broken]})[0] == "turn 2 calls f with arguments that are not a JSON object"
    nameless = {"from": "function_call", "value": "call it"}
    assert refused({"messages": [ASK, nameless]})[0] == "turn 2 calls a tool without a name"


def test_rows_that_differ_in_their_calls_alone_are_not_the_same() -> None:
    other = {**CALL, "function": {"name": "f", "arguments": {"x": 2}}}
    rows = [
        one({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]}) for call in (CALL, other)
    ]
    assert row_key(rows[0]) != row_key(rows[1])


def test_a_call_is_no_empty_turn(tmp_path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [ASK, called, {"role": "tool", "content": "5"}, TELL]}])
    report = check(str(path)).report
    assert not report.of("warning")
    assert report.example is not None
    assert '{"name": "f", "arguments": {"x": 1}}' in [s.text for s in report.example.segments if s.trained]


# --- what nothing is made of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "unused"),
    [
        ({**PAIR, "id": 1, "url": "u", "empty": "", "none": None}, ("id", "url")),
        ({**PAIR, "response": "other"}, ("response",)),
        ({"messages": [ASK, TELL], "prompt": "x", "source": "s"}, ("prompt", "source")),
        ({"text": "a", "title": "t"}, ("title",)),
        ({"messages": [{**ASK, "id": 4, "name": "Bo"}, {**TELL, "text": "x"}]},
         ("turns' id", "turns' name", "turns' text")),
        ({"messages": [{"role": "system", "content": "s"}, ASK, TELL], "system": "t"}, ("system",)),
        ({**PAIR, "system": ["s"]}, ("system",)),
        ({"prompt": [ASK], "completion": [TELL], "context": "c"}, ("context",)),
        ({**PAIR, "turns": 3}, ("turns",)),
    ],
)  # fmt: skip
def test_what_is_not_used_is_named(fields, unused) -> None:
    assert sorted(one(fields).unused) == sorted(unused)


def test_what_is_not_used_is_counted_in_notes_and_in_the_check(tmp_path) -> None:
    rows = [
        {**PAIR, "completion": str(n), "id": n, "source": "s", **({"hint": "h"} if n > 8 else {})} for n in range(10)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    notes = ("not used: columns id, source", f"not used: column hint (1 rows, the first at {path}:10)")
    assert load_data(str(path)).notes == notes
    found = {finding.what: finding.rows for finding in check(str(path)).report.findings if finding.kind == "unused"}
    assert found == {"not used: columns id, source": 10, "not used: column hint": 1}


def test_an_empty_instruction_beside_an_input_is_no_fault() -> None:
    assert one({"instruction": "", "input": "i", "output": "r"}).messages[0]["content"] == "i"
    assert (
        one({"prompt": "Say what c says.", "context": "c", "completion": "r"}).messages[0]["content"]
        == "Say what c says."
    )
    assert one({"prompt": "q", "context": "c", "completion": "r"}).messages[0]["content"] == "q\n\nc"


@pytest.mark.parametrize(
    "fields",
    [
        {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "r"}]}],
         "systemInstruction": {"parts": [{"text": "s"}]}},
        {"system": [{"text": "s"}], "messages": [{"role": "user", "content": [{"text": "q"}]},
                                                 {"role": "assistant", "content": [{"text": "r"}]}]},
        {"system": "s", "messages": repr([ASK, TELL])},
        {"system": "s", "messages": {"role": ["user", "assistant"], "content": ["q", "r"]}},
        {"system": "s", "messages": [{"role": " User", "content": "q"}, {"role": "CHATBOT", "content": "r"}]},
    ],
)  # fmt: skip
def test_conversations_as_other_services_write_them(fields) -> None:
    row = one(fields)
    assert (row.messages, row.unused) == (({"role": "system", "content": "s"}, ASK, TELL), ())


def test_a_column_s_name_cannot_command_a_terminal() -> None:
    assert names_of(one({**PAIR, "x\x1b[31m": "y"}).unused) == "column x\\x1b[31m"
    assert propose({"pro\x1bmpt": "q"}) is None


@pytest.mark.parametrize("answer", ['["a", "b"]', '[{"city": "Lisbon"}]', "['a']", "[1, 2]", "[]"])
def test_an_answer_in_json_is_a_text(answer) -> None:
    assert one({"prompt": "q", "completion": answer}).messages == (ASK, {**TELL, "content": answer})
    assert one({"prompt": answer, "completion": "r"}).messages[0]["content"] == answer
    assert one({"prompt": "q", "chosen": answer, "rejected": "w"}).messages[1]["content"] == answer
    assert one({"prompt": json.dumps([ASK]), "completion": json.dumps([TELL])}).messages == (ASK, TELL)


# --- choices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"A": "Lisbon", "B": "Bonn"}, {"option_a": "Lisbon", "option_b": "Bonn"}, {"opa": "Lisbon", "opb": "Bonn"},
        {"choices": ["Lisbon", "Bonn"]}, {"options": ["A) Lisbon", "B) Bonn"]}, {"choices": '["Lisbon", "Bonn"]'},
        {"choices": "['Lisbon', 'Bonn']"},
        {"options": {"A": "Lisbon", "B": "Bonn"}}, {"choices": {"text": ["Lisbon", "Bonn"], "label": ["A", "B"]}},
        {"options": [{"label": "A", "text": "Lisbon"}, {"label": "B", "text": "Bonn"}]},
        {"choices": [{"A": "Lisbon"}, {"B": "Bonn"}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer", [{"answer": "B"}, {"answerKey": "B"}, {"correct_answer": "Bonn"}, {"label": "B"}])
def test_options_go_into_the_prompt(options, answer) -> None:
    row = one({"question": "q", **options, **answer})
    (told,) = answer.values()
    assert row.messages == ({"role": "user", "content": OPTIONS}, {"role": "assistant", "content": told})
    assert (row.remarks, row.unused) == ((choices.REMARK,), ())


def test_options_that_stand_in_the_prompt_are_not_put_there_twice() -> None:
    row = one({"question": OPTIONS, "choices": ["Lisbon", "Bonn"], "answer": "A"})
    assert (row.messages[0]["content"], row.remarks) == (OPTIONS, (choices.BESIDE,))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 0},
         "answer is a number that stands for one of its choices"),
        ({"question": "q", "choices": ["x", "y"], "answer": "1"},
         "answer is a number that stands for one of its choices"),
        ({"question": "q", "opa": "x", "opb": "y", "cop": 1}, "cop is a number that stands for one of its options"),
        ({"goal": "q", "sol1": "x", "sol2": "y", "label": 1}, "label is a number that stands for one of its options"),
        ({"question": "q", "A": "x", "B": "y", "answer": "C"}, "answer 'C' is none of its options"),
        ({"question": "q", "options": [["x"], ["y"]], "answer": "A"},
         "answer 'A' stands for one of its options, which cannot be read"),
    ],
)  # fmt: skip
def test_an_answer_that_names_no_option_is_refused(fields, what) -> None:
    assert refused(fields)[0] == what


def test_options_that_are_one_text_go_into_the_prompt_as_they_are() -> None:
    row = one({"Problem": "q", "options": "a ) 38 , b ) 27", "correct": "b", "Rationale": "hm"})
    assert row.messages[0]["content"] == "q\n\na ) 38 , b ) 27"
    assert row.messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "hm"}


def test_columns_that_look_like_options_and_are_none_are_named_as_unused() -> None:
    assert one({"question": "q", "options": {"temperature": 1}, "answer": "warm"}).unused == ("options",)


# --- pictures and sounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [ASK, TELL], "images": ["a.png"]}, {**PAIR, "image": "0.jpg"}, {**PAIR, "audio": {"bytes": "x"}},
        {"messages": [{**ASK, "content": "<image>\nq"}, TELL]}, {"messages": [{**ASK, "content": "q <image>"}, TELL]},
        {"messages": [{**ASK, "content": "<audio>"}, TELL]}, {**PAIR, "prompt": "<|image_1|>\nq"},
        {**PAIR, "prompt": "Picture 1: <img>a.jpg</img>\nq"}, {**PAIR, "prompt": "a <start_of_image> b"},
        {"messages": [{**ASK, "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, TELL]},
        {"messages": [{**ASK, "content": [{"type": "input_audio", "input_audio": {}}]}, TELL]},
        {"text": "a cat", "image": "0.jpg"}, {**PAIR, "img_path": "a/0.jpg"}, {**PAIR, "image_id": 7},
        {**PAIR, "video_url": "https://a.example/a b c d.mp4"}, {**PAIR, "Image_1": b"x"},
    ],
)  # fmt: skip
def test_pictures_and_sounds_are_refused_in_every_form(fields) -> None:
    assert refused(fields)[0].endswith("autoft trains on text alone")


@pytest.mark.parametrize("text", ["use the <image> tag in SVG", "<image>\n<url>u</url>\n</image> is RSS", "an image"])
def test_a_text_about_pictures_is_none(text) -> None:
    assert one({**PAIR, "speech": "Ladies and gentlemen, welcome."}).unused == ("speech",)
    assert one({"prompt": text, "completion": "r", "images": []}).messages[0]["content"] == text


# --- rows that are rendered already --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "prompt", "answer"),
    [
        ("ChatML", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "r<|im_end|>"),
        ("ChatML", "<|im_start|>user\nq<|im_end|>\n", "<|im_start|>assistant\nr<|im_end|>\n"),
        ("ChatML", "<|im_start|>user\nq<|im_end|>\n", "r"),
        ("Llama 3", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n", "r<|eot_id|>"),
        ("Gemma", "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n", "r<end_of_turn>\n"),
        ("Mistral", "<s>[INST] q [/INST]", " r</s>"),
        ("Phi", "<|user|>\nq<|end|>\n<|assistant|>\n", "r<|end|>"),
        ("Human and Assistant", "\n\nHuman: q\n\nAssistant:", " r"),
        ("Granite", "<|start_of_role|>user<|end_of_role|>q<|end_of_text|>\n"
         "<|start_of_role|>assistant<|end_of_role|>", "r"),
    ],
)  # fmt: skip
def test_a_rendered_prompt_is_read_as_its_turns(form, prompt, answer) -> None:
    row = one({"prompt": prompt, "completion": answer})
    assert row.messages == (ASK, TELL)
    assert row.remarks[0] == f"prompts were rendered already ({form}): they are read as the turns that they are of"


def test_earlier_turns_and_a_begun_thought_of_a_rendered_prompt_are_kept() -> None:
    prompt = "[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] r </s><s>[INST] q [/INST]"
    row = one({"prompt": prompt, "completion": "r"})
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    row = one(
        {"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n", "completion": "hm\n</think>\n\nr"}
    )
    assert row.messages[1]["content"] == "<think>\nhm\n</think>\n\nr"


@pytest.mark.parametrize(
    "stop", ["<|im_end|>", "<|im_end|>\n", "</s>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<eos>"]
)
def test_a_stop_token_as_text_is_trained_once(stop) -> None:
    row = one({"messages": [ASK, {**TELL, "content": f"r{stop}"}]})
    assert (row.messages[1], row.remarks) == (TELL, (rendered.STOPS_LEFT_OUT,))
    assert refused({**PAIR, "completion": stop})[0] == "turn 2, an answer, is a stop token alone"


@pytest.mark.parametrize(
    ("prompt", "remark"),
    [
        ("### Instruction:\nq\n\n### Response:\n", rendered.FRAMED), ("Q: q\nA:", rendered.FRAMED),
        ("User: q\nAssistant:", rendered.FRAMED), ("what is <|im_start|>?", rendered.MARKERS),
    ],
)  # fmt: skip
def test_a_frame_and_tokens_in_a_prompt_are_said(prompt, remark) -> None:
    row = one({**PAIR, "prompt": prompt})
    assert (row.messages[0]["content"], row.remarks) == (prompt, (remark,))


def test_a_bos_token_as_text_is_not_written_twice() -> None:
    assert one({**PAIR, "prompt": "<s>q"}).messages == (ASK, TELL)
    row = one({"text": "<s>[INST] q [/INST] r </s>"})
    assert row.text == "[INST] q [/INST] r "
    assert row.remarks == (rendered.BOS_LEFT_OUT, rendered.TEXT_STOPS_LEFT_OUT, rendered.RENDERED_TEXT)
    for html in ("<s>old</s> new", "a <b>bold</b> word"):
        assert (one({"text": html}).text, one({"text": html}).remarks) == (html, ())
        assert one({**PAIR, "completion": html}).messages[1]["content"] == html


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user\nq<|im_end|>\n", "### Instruction:\nq\n\n### Response:\nr", "### Human: q### Assistant: r"],
)
def test_a_text_that_is_a_rendered_chat_is_said_to_be_one(text) -> None:
    assert (one({"text": text}).text, one({"text": text}).remarks) == (text, (rendered.RENDERED_TEXT,))


def test_tokens_of_templates_in_texts_are_a_warning_of_the_check(tmp_path) -> None:
    answer = "yes<|im_end|>\n<|im_start|>user\nmore"
    path = write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "completion": answer}])
    (warning,) = check(str(path)).report.of("warning")
    assert (warning.what, warning.places) == (rendered.MARKERS, (f"{path}:1",))


# --- refusals that name the reason and a way on --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "what", "fix"),
    [
        ({"question": "q", "answer": ["r", "s"]}, "answer is a list of 2 texts, not one text",
         "--map completion=answer.0"),
        ({"prompt": ["a", "b"], "completion": ["c", "d"]}, "prompt is a list of 2 texts, not one text",
         "a row for each"),
        ({"dialogue": "Bo: hi\nJo: hi", "summary": "They meet."}, "dialogue is a text, not a list of turns",
         "--map prompt=dialogue,completion=summary, which makes of it: user 'Bo: hi Jo: hi', assistant 'They meet.'"),
        ({"conversation": "User: q\nAssistant: r"},
         "conversation is one text with lines such as 'User:', not a list of turns", "--map text=conversation"),
        ({"message_id": "m", "parent_id": None, "text": "q", "role": "prompter"},
         "one message of a conversation, as its column parent_id says, not an example", "--map text=text"),
        ({"conversation_id": 1, "role": "user", "content": "q"},
         "one message of a conversation, as its column role says, not an example", "--map text=content"),
        ({"conversation_id": 1, "from": "human", "value": "q"},
         "one message of a conversation, as its column from says, not an example", "--map text=value"),
        ({"messages": [ASK, "r"]}, "turn 2 is a text, not an object", "role"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_true_reason_and_a_way_on(fields, what, fix) -> None:
    assert refused(fields)[0] == what
    assert fix in refused(fields)[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": "0", "title": "Lisbon", "context": "c", "question": "q", "answers": {"text": ["r"]}},
         r"prompt={context}\n\n{question},completion=answers.text.0"),
        ({"question": "q", "answers": ["r", "s"]}, "prompt=question,completion=answers.0"),
        ({"premise": "a", "hypothesis": "b", "label": 1}, r"prompt={premise}\n{hypothesis},completion=label"),
        ({"source": "a", "target": "b"}, "prompt=source,completion=target"),
        ({"translation": {"en": "a", "de": "b"}}, "prompt=translation.en,completion=translation.de"),
        ({"question": "q", "context": "c", "answers": {"text": []}}, None),
        ({"question": "q", "choices": ["x", "y"], "answer_index": 1}, None),
        ({"question": {"stem": "q"}, "answerKey": "A"}, None),
        ({"a": "1", "b": "2", "c": "3"}, None),
        ({"train": [PAIR], "test": [PAIR]}, None),
        ({"chosen": "q r", "rejected": "q w"}, None),
        ({"prompt": "q", "completions": ["r", "s"], "labels": [True, False]}, None),
    ],
)  # fmt: skip
def test_a_proposal_makes_sense_or_there_is_none(fields, words) -> None:
    assert propose(fields) == words
    if words:
        assert one(fields, words).messages[-1]["content"]


def test_no_row_shows_in_the_faults_of_a_check(tmp_path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"dialogue": "hidden words", "summary": "others"}])
    (fault,) = check(str(path)).report.of("fault")
    assert "--map prompt=dialogue,completion=summary" in str(fault.fix)
    assert "hidden" not in str(fault.fix)
    assert read_rows(str(path))[0].fields["summary"] == "others"
