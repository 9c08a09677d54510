"""Rows from files, their shapes, and which of their tokens are trained."""

from __future__ import annotations

import json

import pytest

from autoft.errors import DataError
from autoft.trainer.data.load import load_data
from autoft.trainer.data.read import RawRow, read_rows
from autoft.trainer.data.shape import recognise
from autoft.trainer.data.split import heldout_keys
from autoft.trainer.data.tokens import prompt_ids, stop_ids, tokenize
from autoft.trainer.objectives.loss import IGNORED
from tests.conftest import make_tokenizer, write_jsonl
from tests.trainer.test_templates import make

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({"messages": TURNS}, TURNS),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, TURNS),
        ({"prompt": "a", "completion": "b"}, TURNS),
        ({"question": "a", "answer": "b"}, TURNS),
        ({"Instruction": "a", "input": "", "Output": "b"}, TURNS),
        ({"instruction": "a", "input": "c", "output": "b"}, [{"role": "user", "content": "a\n\nc"}, TURNS[1]]),
        ({"system": "s", "prompt": "a", "completion": "b"}, [{"role": "system", "content": "s"}, *TURNS]),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, TURNS),
    ],
)
def test_shapes_become_one_conversation(fields, turns) -> None:
    (row,) = recognise([RawRow(fields, "f:1")])
    assert list(row.messages) == turns


def test_csv_and_parquet_read_like_json(tmp_path) -> None:
    from datasets import Dataset

    table = Dataset.from_dict({"question": ["a", "c"], "answer": ["b", "d"]})
    table.to_csv(tmp_path / "t.csv")
    table.to_parquet(tmp_path / "t.parquet")
    write_jsonl(tmp_path / "t.jsonl", list(table))
    read = [[row.fields for row in read_rows(str(tmp_path / name))] for name in ("t.csv", "t.parquet", "t.jsonl")]
    assert read[0] == read[1] == read[2]


def test_the_split_is_the_same_every_time_and_keeps_equal_rows_together(tmp_path) -> None:
    """Equal in what they say: their other columns, spaces and upper case aside."""
    rows = [{"id": n, "prompt": f"{n % 30}  A" if n < 30 else f" {n % 30} a", "completion": "b"} for n in range(60)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    splits = load_data(path)
    train, heldout = list(splits.train), splits.heldout
    again = load_data(path)
    assert (list(again.train), again.heldout) == (train, heldout)
    assert (len(train), len(splits.train), len(heldout)) == (54, 54, 6)
    said = [{row.messages[0]["content"].split()[0] for row in side} for side in (train, heldout)]
    assert not said[0] & said[1]


def test_copies_of_one_row_are_never_all_held_out() -> None:
    assert heldout_keys([b"a"] * 20, 100) == frozenset()
    assert heldout_keys([*[b"a"] * 20, b"b"], 1) == {b"b"}


def test_only_answers_and_their_stop_are_trained(tokenizer) -> None:
    turns = [*TURNS, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    (example,) = tokenize(recognise([RawRow({"messages": turns}, "f:1")]), tokenizer).examples
    trained = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(trained) == "b<|im_end|>d<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))


def test_training_sees_exactly_what_inference_gives(tokenizer) -> None:
    (example,) = tokenize(recognise([RawRow({"messages": TURNS}, "f:1")]), tokenizer).examples
    prompt = prompt_ids(TURNS[:1], tokenizer)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert list(example.labels[: len(prompt)]) == [IGNORED] * len(prompt)
    assert example.labels[len(prompt)] != IGNORED


def test_where_no_token_of_its_own_follows_an_answer_that_is_not_the_last_it_is_refused() -> None:
    """The eos token can be added behind the last one; in the midst it takes the place of the token that follows."""
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    done = tokenize(recognise([RawRow({"messages": TURNS}, "f:1")]), tokenizer)
    trained = [label for label in done.examples[0].labels if label != IGNORED]
    assert tokenizer.decode(trained) == "b<|im_end|>"
    assert [fact.format(n=1) for fact in done.facts] == [
        "the chat template writes no stop token after 1 answers: <|im_end|> is trained there"
    ]
    rows = recognise([RawRow({"messages": TURNS * 2}, "f:1")])
    both = [label for label in tokenize(rows, tokenizer).examples[0].labels if label != IGNORED]
    assert tokenizer.decode(both) == "b<|im_end|>" * 2
    with pytest.raises(DataError, match=r"f:1: nothing that the chat template writes after an answer can be trained"):
        tokenize(rows, make(template=template, merges=[("b", "Ċ")]))


def test_long_conversations_are_left_out_and_texts_are_cut_without_loss(tokenizer) -> None:
    rows = recognise([RawRow({"prompt": "a" * n, "completion": "b"}, f"f:{n}") for n in (1, 200)])
    short = tokenize(rows, tokenizer, max_tokens=100)
    assert len(short.examples) == 1
    assert short.too_long == ["f:200"]
    text = "x" * 250
    pieces = tokenize(recognise([RawRow({"text": text}, "f:1")]), tokenizer, max_tokens=100).examples
    assert tokenizer.decode([i for p in pieces for i in p.input_ids]) == text + "<|im_end|>"
    assert all(len(p.input_ids) <= 100 for p in pieces)


def test_the_template_s_own_end_token_stops_an_answer_too(tokenizer) -> None:
    other = make_tokenizer()
    other.eos_token = "<|endoftext|>"
    assert set(stop_ids(other)) == {other.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_shared_system_prompt_is_found(tmp_path) -> None:
    def rows(*systems):
        return [{"messages": [{"role": "system", "content": s}, *TURNS]} for s in systems]

    same = load_data(str(write_jsonl(tmp_path / "a.jsonl", rows("s", "s"))))
    assert same.system_prompt == "s"
    assert load_data(str(write_jsonl(tmp_path / "b.jsonl", rows("s", "t")))).system_prompt is None


def test_held_out_rows_in_the_training_data_are_refused_and_counted(tmp_path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"prompt": str(n), "completion": "x"} for n in range(30)])
    heldout = tmp_path / "b.jsonl"
    for others, more, them in (("7", "", "it"), ("789", "; 2 more held-out rows are trained too", "them")):
        write_jsonl(heldout, [{"question": n, "answer": "X "} for n in ("y", *others)])
        with pytest.raises(DataError) as refused:
            load_data(str(train), str(heldout), eval_rows=1)
        assert refused.value.what == (
            f"{heldout}:2: this held-out row is also in {train}:8, spaces and upper case aside{more}"
        )
        assert refused.value.fix == (
            f"remove {them} from one of the two, or leave --eval-data out: then other rows are held out"
        )


def test_the_bundled_task_is_ordinary_jsonl(own_home) -> None:
    data = load_data("starter")
    assert (len(data.train), len(data.heldout)) == (400, 100)
    file = own_home / "data" / "support-desk-train.jsonl"
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0])["messages"][-1]["role"] == "assistant"
    assert len(load_data(str(file)).train) + len(load_data(str(file)).heldout) == 400
