"""The starter task: every label can be read off its message, and nothing of the held-out rows was trained on."""

import collections
import errno
import json
import os
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from autoft.trainer.data import support_desk

CATEGORIES = {"delivery", "billing", "defect", "return", "account", "question"}
URGENCIES = {"low", "normal", "high"}
WISHES = {"refund", "replacement", "repair", "information", "cancellation", "callback"}

BRANDS = "|".join(support_desk._FILLERS["brand"])
KINDS = "|".join(support_desk._FILLERS["kind"])
URGENT_OR_NOT = re.compile(
    "|".join(
        re.escape(cue).replace(r"\{deadline\}", "[^.]+").replace(r"\{patience\}", "[^.]+")
        for urgency in ("high", "low")
        for cue in support_desk._URGENCIES[urgency]
    )
)


def message(row: support_desk.Row) -> str:
    return row["messages"][1]["content"]


def answer(row: support_desk.Row) -> dict[str, str | None]:
    parsed = json.loads(row["messages"][2]["content"])
    assert isinstance(parsed, dict)
    return parsed


@pytest.fixture(scope="module")
def train() -> list[support_desk.Row]:
    return support_desk.generate()[0]


@pytest.fixture(scope="module")
def heldout() -> list[support_desk.Row]:
    return support_desk.generate()[1]


@pytest.fixture(scope="module")
def rows(train: list[support_desk.Row], heldout: list[support_desk.Row]) -> list[support_desk.Row]:
    return train + heldout


# --- the interface ---------------------------------------------------------------------------------------------------


def test_default_and_asked_for_row_counts(train: list[support_desk.Row], heldout: list[support_desk.Row]) -> None:
    assert (len(train), len(heldout)) == (400, 100)
    assert [len(split) for split in support_desk.generate(train_rows=7, heldout_rows=1)] == [7, 1]


@pytest.mark.parametrize("rows", [0, -3])
def test_row_counts_that_are_not_positive_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"^train_rows must be at least 1, not {rows}$"):
        support_desk.generate(train_rows=rows)
    with pytest.raises(ValueError, match=rf"^heldout_rows must be at least 1, not {rows}$"):
        support_desk.generate(heldout_rows=rows)


def test_same_seed_same_rows_other_seed_other_rows(train: list[support_desk.Row]) -> None:
    assert support_desk.generate(seed=0)[0] == train
    others = {message(row) for row in support_desk.generate(seed=1)[0]}
    assert not others & {message(row) for row in train}


def test_rows_do_not_depend_on_the_process() -> None:
    script = "from autoft.trainer.data import support_desk; print(ascii(support_desk.generate(train_rows=20)))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert printed == {ascii(support_desk.generate(train_rows=20)) + "\n"}


def test_heldout_rows_stay_when_the_training_set_grows(heldout: list[support_desk.Row]) -> None:
    assert support_desk.generate(train_rows=1000)[1] == heldout


def test_a_row_is_system_user_assistant(rows: list[support_desk.Row]) -> None:
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == support_desk.SYSTEM


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_one_line_of_json_with_the_fields_in_order(rows: list[support_desk.Row]) -> None:
    for row in rows:
        content = row["messages"][2]["content"]
        assert tuple(answer(row)) == support_desk.FIELDS
        assert "\n" not in content
        assert content == json.dumps(answer(row), ensure_ascii=False)


def test_non_ascii_names_are_written_as_they_are(rows: list[support_desk.Row]) -> None:
    assert any(not row["messages"][2]["content"].isascii() for row in rows)
    assert not any("\\u" in row["messages"][2]["content"] for row in rows)


def test_classes_are_the_known_ones_and_all_occur_in_both_splits(
    train: list[support_desk.Row], heldout: list[support_desk.Row]
) -> None:
    for split in (train, heldout):
        answers = [answer(row) for row in split]
        assert {fields["category"] for fields in answers} == CATEGORIES
        assert {fields["urgency"] for fields in answers} == URGENCIES
        assert {fields["wish"] for fields in answers} == WISHES


@pytest.mark.parametrize(("field", "most"), [("category", 0.18), ("urgency", 0.45), ("wish", 0.30)])
def test_classes_are_balanced(rows: list[support_desk.Row], field: str, most: float) -> None:
    counts = collections.Counter(answer(row)[field] for row in rows)
    assert max(counts.values()) <= most * len(rows)
    assert min(counts.values()) >= 0.06 * len(rows)


def test_classes_are_mixed_from_the_first_rows_on(train: list[support_desk.Row]) -> None:
    assert {answer(row)["category"] for row in train[:40]} == CATEGORIES


@pytest.mark.parametrize("field", ["product", "order_number", "customer"])
def test_what_is_copied_is_sometimes_absent_and_otherwise_verbatim(rows: list[support_desk.Row], field: str) -> None:
    values = [(answer(row)[field], message(row)) for row in rows]
    assert 0.15 <= sum(value is None for value, _ in values) / len(rows) <= 0.45
    for value, text in values:
        assert value is None or re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text), (value, text)


def test_null_means_that_the_message_holds_none(rows: list[support_desk.Row]) -> None:
    brands = re.compile(rf"\b({BRANDS})\b")
    surnames = re.compile(rf"\b({'|'.join(support_desk._LAST_NAMES)})\b")
    for row in rows:
        fields, text = answer(row), message(row)
        assert fields["product"] is not None or not brands.search(text), text
        assert fields["customer"] is not None or not surnames.search(text), text
        assert fields["order_number"] is not None or not re.search(r"\border\b", text), text


@pytest.mark.parametrize("table", [support_desk._PROBLEMS, support_desk._WISHES, support_desk._URGENCIES])
def test_a_sentence_never_means_two_things(table: dict[str, tuple[str, ...]]) -> None:
    sentences = [sentence for choices in table.values() for sentence in choices]
    assert len(sentences) == len(set(sentences))


def test_no_label_has_too_few_ways_of_saying_it() -> None:
    for table in (support_desk._PROBLEMS, support_desk._WISHES):
        assert min(len(sentences) for sentences in table.values()) >= 6


def test_a_normal_urgency_is_never_mentioned(rows: list[support_desk.Row]) -> None:
    for row in rows:
        assert answer(row)["urgency"] != "normal" or not URGENT_OR_NOT.search(message(row)), message(row)


def test_naming_a_day_does_not_give_the_urgency_away(rows: list[support_desk.Row]) -> None:
    day = re.compile("|".join(support_desk._FILLERS["weekday"] + support_desk._FILLERS["month"]))
    counts = collections.Counter(answer(row)["urgency"] for row in rows if day.search(message(row)))
    assert min(counts[urgency] for urgency in URGENCIES) >= 0.1 * counts.total()


def test_many_heldout_urgencies_are_worded_as_in_no_training_row(
    train: list[support_desk.Row], heldout: list[support_desk.Row]
) -> None:
    known, asked = (
        {found for row in split for found in URGENT_OR_NOT.findall(message(row))} for split in (train, heldout)
    )
    assert len(asked) >= 30
    assert len(asked - known) >= 0.3 * len(asked)


def test_agents_are_not_customers() -> None:
    assert not set(support_desk._FILLERS["agent"]) & set(support_desk._FIRST_NAMES)


# --- messages --------------------------------------------------------------------------------------------------------


def test_messages_are_short_and_every_slot_is_filled(rows: list[support_desk.Row]) -> None:
    lengths = [len(message(row).split()) for row in rows]
    assert 24 <= sum(lengths) / len(lengths) <= 30
    for row in rows:
        assert 10 <= len(message(row).split()) <= 50
        assert not re.search(r"[{}#@]|  |\bNone\b", message(row)), message(row)


def test_many_messages_hold_a_number_that_is_no_order_number(rows: list[support_desk.Row]) -> None:
    def has_other_number(row: support_desk.Row) -> bool:
        fields = answer(row)
        text = message(row).replace(fields["order_number"] or "\0", "").replace(fields["product"] or "\0", "")
        return re.search(r"\d{3}", text) is not None

    with_order = [row for row in rows if answer(row)["order_number"] is not None]
    without_order = [row for row in rows if answer(row)["order_number"] is None]
    for group in (with_order, without_order):
        assert sum(map(has_other_number, group)) >= 0.3 * len(group)


def test_some_messages_name_a_second_product(rows: list[support_desk.Row]) -> None:
    product = re.compile(rf"\b({BRANDS})\b[\w ]*?\b({KINDS})\b")
    named = [len(product.findall(message(row))) for row in rows]
    assert 0.05 * len(rows) <= sum(count == 2 for count in named)
    assert max(named) == 2


def test_the_order_of_the_sentences_varies(rows: list[support_desk.Row]) -> None:
    with_order = [row for row in rows if answer(row)["order_number"] is not None]
    early = sum(message(row).index(answer(row)["order_number"] or "") < 80 for row in with_order)
    assert 0.2 * len(with_order) <= early <= 0.8 * len(with_order)


def words_written(value: object) -> Iterator[str]:
    """Every lower-case word in a (nested) table of sentences, slots taken out."""
    if isinstance(value, str):
        yield from re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", value))
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from words_written(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from words_written(item)


def test_typos_occur_and_are_not_everywhere(rows: list[support_desk.Row]) -> None:
    tables = [value for name, value in vars(support_desk).items() if re.fullmatch(r"_[A-Z_]+", name)]
    known = {*words_written(tuple(tables)), "order"}

    def misspelt(row: support_desk.Row) -> list[str]:
        return [word for word in re.findall(r"(?<![\w'-])[a-z]{4,}(?![\w'-])", message(row)) if word not in known]

    counts = [len(misspelt(row)) for row in rows]
    assert 0.25 <= sum(count > 0 for count in counts) / len(rows) <= 0.6
    assert max(counts) == 2


def test_typos_spare_slots_numbers_names_and_short_words() -> None:
    template = "Dear {customer}, it is {customer_number} or {order} of O'Brien, A-482: broken"
    results = {support_desk._with_typos(template, random.Random(seed)) for seed in range(300)}
    assert template in results
    assert len(results) > 5
    for result in results:
        assert result.startswith("Dear {customer}, it is {customer_number} or {order} of O'Brien, A-482: ")
        assert re.fullmatch(r"b[roken]{3,5}n", result.rsplit(" ", 1)[1])


# --- held out means held out -----------------------------------------------------------------------------------------


def test_nothing_is_drawn_twice() -> None:
    train, heldout = support_desk._draw_splits(seed=0, train_rows=12_000, heldout_rows=1_000)
    draws = train + heldout
    assert len({draw.message for draw in draws}) == 13_000
    assert len({draw.combination for draw in draws}) == 13_000
    orders = [draw.answer["order_number"] for draw in draws if draw.answer["order_number"] is not None]
    assert len(set(orders)) == len(orders)


def test_train_and_heldout_share_no_message_order_number_or_customer(
    train: list[support_desk.Row], heldout: list[support_desk.Row]
) -> None:
    assert not {message(row) for row in train} & {message(row) for row in heldout}
    for field in ("order_number", "customer"):
        shared = {answer(row)[field] for row in train} & {answer(row)[field] for row in heldout}
        assert shared == {None}


def test_a_combination_tells_apart_what_an_answer_holds() -> None:
    train, _ = support_desk._draw_splits(seed=0, train_rows=300, heldout_rows=1)
    for draw in train:
        assert {draw.answer[field] for field in ("product", "order_number", "customer")} <= set(draw.combination)


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_hold_what_generate_returns(tmp_path: pathlib.Path) -> None:
    paths = support_desk.write(tmp_path / "new" / "folder", seed=3)
    assert [path.name for path in paths] == ["support-desk-train.jsonl", "support-desk-heldout.jsonl"]
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)
    for path, rows in zip(paths, support_desk.generate(seed=3), strict=True):
        content = path.read_bytes().decode("utf-8")
        assert content.endswith("\n")
        assert "\r" not in content
        assert "\\u" not in content
        assert [json.loads(line) for line in content.removesuffix("\n").split("\n")] == rows


def test_the_same_bytes_are_left_alone_and_others_replaced(tmp_path: pathlib.Path) -> None:
    train_path, heldout_path = support_desk.write(tmp_path)
    content, untouched = train_path.read_bytes(), heldout_path.stat()
    train_path.write_bytes(content[:1000])
    os.utime(heldout_path, ns=(1, 1))
    support_desk.write(tmp_path)
    assert train_path.read_bytes() == content
    assert (heldout_path.stat().st_ino, heldout_path.stat().st_mtime_ns) == (untouched.st_ino, 1)


@pytest.mark.parametrize(("module", "call"), [(os, "fsync"), (pathlib.Path, "replace")])
def test_a_full_disk_leaves_no_half_written_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, module: object, call: str
) -> None:
    (tmp_path / "support-desk-train.jsonl").write_text("before\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, call, full)
    with pytest.raises(OSError, match="No space left"):
        support_desk.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["support-desk-train.jsonl"]
    assert (tmp_path / "support-desk-train.jsonl").read_text() == "before\n"
