"""Rows from every kind of file, from folders and globs, and from a hub dataset that is in the local cache."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path

import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset_builder
from pyarrow import feather

from autoft.errors import DataError
from autoft.trainer.data.files import roles
from autoft.trainer.data.load import load_data
from autoft.trainer.data.read import open_data, read_rows, stream_rows
from tests.conftest import write_jsonl

ROWS = [{"question": "a", "answer": "b"}, {"question": "c\nd", "answer": '"e"'}]


def fields(path) -> list[dict[str, object]]:
    return [row.fields for row in read_rows(str(path))]


def wheres(path) -> list[str]:
    return [row.where for row in read_rows(str(path))]


def test_every_kind_of_table_reads_alike(tmp_path) -> None:
    table = Dataset.from_list(ROWS)
    table.to_csv(tmp_path / "t.csv")
    table.to_csv(tmp_path / "semicolons.csv", sep=";")
    table.to_csv(tmp_path / "t.tsv", sep="\t")
    table.to_parquet(tmp_path / "t.parquet")
    feather.write_feather(table.data.table, str(tmp_path / "t.feather"))
    with (
        pyarrow.OSFile(str(tmp_path / "t.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.data.schema) as out,
    ):
        out.write_table(table.data.table)
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    write_jsonl(tmp_path / "lines.json", ROWS)
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "within.json").write_text(json.dumps({"version": 1, "data": ROWS}, indent=1))
    files = [path for path in sorted(tmp_path.iterdir()) if path.name != "t.jsonl"]
    assert len(files) == 9
    for path in files:
        assert fields(path) == ROWS, path.name
    assert wheres(tmp_path / "t.csv") == [f"{tmp_path}/t.csv:2", f"{tmp_path}/t.csv:3"]
    assert wheres(tmp_path / "t.parquet") == [f"{tmp_path}/t.parquet: row 1", f"{tmp_path}/t.parquet: row 2"]


def test_one_object_over_several_lines_is_one_row(tmp_path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
    assert fields(tmp_path / "a.json") == [row]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_packed_files_read_like_the_files_in_them(tmp_path, suffix) -> None:
    text = "\ufeff".encode() + b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / f"a.JSONL{suffix}"
    path.write_bytes(pack[suffix](text) if suffix in pack else pyarrow.compress(text, "zstd", asbytes=True))
    assert fields(path) == ROWS
    assert wheres(path) == [f"{path}:1", f"{path}:2"]


def test_the_first_bad_line_is_named_after_the_good_ones_are_read(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": "\xe9"}\n')
    rows = stream_rows(str(path))
    assert next(rows).fields == {"text": "a"}
    with pytest.raises(DataError, match=r"a\.jsonl:3: not UTF-8 text"):
        next(rows)


def test_labels_of_a_table_are_read_by_their_names(tmp_path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["bad", "good"]))
    table = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(tmp_path / "saved")
    for place in ("t.parquet", "saved"):
        assert [row["label"] for row in fields(tmp_path / place)] == ["good", "bad", -1]


def test_a_text_is_read_in_passages_of_whole_paragraphs(tmp_path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a\n\nb\n")
    assert [(row.fields, row.where, row.goes_on) for row in read_rows(str(short))] == [
        ({"text": "a\n\nb\n"}, f"{short}:1", False)
    ]
    path = tmp_path / "long.md"
    paragraphs = "".join(f"{n} {'x' * 988}\n{'x' * 8}\n\n" for n in range(10, 20))
    lines = ("y" * 999 + "\n") * 20
    path.write_text("\n" * 9000 + paragraphs + lines + "word " * 3000 + "\n" * 9000)
    rows = read_rows(str(path))
    assert "".join(row.fields["text"] for row in rows).strip() == path.read_text().strip()
    assert [row.goes_on for row in rows] == [True] * (len(rows) - 1) + [False]
    # 7 paragraphs of 1002, then 3 and 4 lines of 1000 (its last blank line is in its first half), 8 and 8, and words
    assert [len(row.fields["text"]) for row in rows] == [7014, 7006, 8000, 8000, 8000, 16000]
    assert [row.where for row in rows[:2]] == [f"{path}:9001", f"{path}:9022"]
    assert rows[1].fields["text"].startswith("17 xxx")


def layout(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": f"{name} {n}", "completion": "b"} for n in range(2)]
        if path.suffix == ".csv":
            path.write_text("prompt,completion\n" + "".join(f"{row['prompt']},b\n" for row in rows))
        elif path.suffix == ".parquet":
            Dataset.from_list(rows).to_parquet(path)
        elif path.suffix == ".jsonl":
            write_jsonl(path, rows)
        else:
            path.write_text("no data")
    return folder


@pytest.mark.parametrize(
    ("names", "train", "heldout", "unused"),
    [
        (("b.jsonl", "a.csv", "c/a.parquet"), ["a.csv", "b.jsonl", "c/a.parquet"], [], ()),
        (("train.jsonl", "test.jsonl", "README.md", "LICENSE.txt", "dataset_info.json"),
         ["train.jsonl"], ["test.jsonl"], ()),
        (("data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-0-of-1.parquet",
          "data/validation-0-of-1.parquet"),
         ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
         ["data/validation-0-of-1.parquet"], ("test",)),
        (("train/a.jsonl", "dev/a.jsonl", ".git/a.jsonl", "_tmp/a.jsonl", "a.py", "more.jsonl"),
         ["more.jsonl", "train/a.jsonl"], ["dev/a.jsonl"], ()),
        (("test.jsonl", "contest.jsonl"), ["contest.jsonl"], ["test.jsonl"], ()),
        (("test-1.jsonl", "test-2.jsonl"), ["test-1.jsonl", "test-2.jsonl"], [], ()),
    ],
)  # fmt: skip
def test_a_folder_tells_by_its_names_what_is_held_out(tmp_path, names, train, heldout, unused) -> None:
    data = open_data(str(layout(tmp_path / "test", *names)))
    read = [list(dict.fromkeys(r.fields["prompt"].split()[0] for r in side())) if side else []
            for side in (data.train, data.heldout)]  # fmt: skip
    assert read == [train, heldout]
    assert data.roles.unused == unused


def test_a_glob_takes_what_matches_and_no_other(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(layout(tmp_path, "a/train.jsonl", "a/test.jsonl", "a/other.csv", "b/deep/x.jsonl", "[odd].jsonl"))
    assert len(fields("a/*.jsonl")) == 2
    assert open_data("a/*.jsonl").heldout is not None
    assert len(fields("**/*.jsonl")) == 6
    assert len(fields(tmp_path / "*")) == 8
    assert [row["prompt"] for row in fields("[odd].jsonl")] == ["[odd].jsonl 0", "[odd].jsonl 1"]


def test_held_out_rows_of_a_folder_that_are_trained_too_are_left_out_and_told(tmp_path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": str(n), "completion": "b"} for n in range(30)])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": str(n), "completion": "B "} for n in range(28, 40)])
    data = load_data(str(tmp_path), eval_rows=8)
    assert (len(data.train), len(data.heldout)) == (30, 8)
    numbers = [int(row.messages[0]["content"]) for row in data.heldout]
    assert numbers == sorted(numbers)
    assert min(numbers) >= 30
    assert data.notes == (
        "held out: 8 rows of its split 'test'",
        "2 rows of the split 'test' are trained too, and not held out",
    )
    own = str(write_jsonl(tmp_path / "own.csv.jsonl", [{"prompt": "x", "completion": "y"}]))
    assert load_data(str(tmp_path / "t*.jsonl"), own).notes == ("not used: its split 'test'",)


def test_a_dataset_saved_to_disk_is_read_with_its_splits(tmp_path) -> None:
    rows = [{"prompt": str(n), "completion": "b"} for n in range(30)]
    saved = DatasetDict(train=Dataset.from_list(rows[:20]), test=Dataset.from_list(rows[20:]))
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    data = load_data(str(tmp_path / "saved"))
    assert [row.messages[0]["content"] for row in data.train] == [str(n) for n in range(20)]
    assert [row.messages[0]["content"] for row in data.heldout] == [str(n) for n in range(20, 30)]


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> None:
    """Where `datasets` keeps what it has fetched, with one dataset of the hub in it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = layout(tmp_path / "source", "train.jsonl", "test.jsonl", "extra.jsonl")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test", "extra")}
    builder = load_dataset_builder("json", data_files=files, cache_dir=str(tmp_path / "built"))
    builder.download_and_prepare()
    kept = tmp_path / "cache" / "acme___qa" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(builder.cache_dir, kept)
    for file in kept.glob("json-*"):
        file.rename(kept / file.name.replace("json-", "qa-"))
    info = (kept / "dataset_info.json").read_text()
    (kept / "dataset_info.json").write_text(info.replace('"dataset_name": "json"', '"dataset_name": "qa"'))


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_dataset_in_the_local_cache_is_read_without_a_network() -> None:
    assert [row.where for row in read_rows("acme/qa")] == ["acme/qa:train: row 1", "acme/qa:train: row 2"]
    data = load_data("acme/qa")
    assert [row.where for row in data.train] == ["acme/qa:train: row 1", "acme/qa:train: row 2"]
    assert [row.messages[0]["content"] for row in data.heldout] == ["test.jsonl 0", "test.jsonl 1"]
    assert data.notes == ("held out: 2 rows of its split 'test'",)
    assert next(row.where for row in load_data("acme/qa/default:extra").train) == "acme/qa/default:extra: row 1"
    with pytest.raises(DataError, match=r"acme/qa:trian: no split 'trian'\. Did you mean train, extra\?"):
        load_data("acme/qa:trian")
    with pytest.raises(DataError, match="acme/qa/main: datasets cannot read it: Couldn't find cache for acme/qa"):
        load_data("acme/qa/main")
    with pytest.raises(DataError, match=r"acme/qb: no such file or folder here, no dataset in the hub's local cache"):
        load_data("acme/qb")


def test_a_hub_dataset_that_was_downloaded_as_files_is_read_without_a_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "datasets--acme--qc"
    layout(kept / "snapshots" / ("a" * 40), "data/train-0-of-1.parquet", "data/test-0-of-1.parquet", "README.md")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    assert [row.where for row in read_rows("acme/qc")] == ["acme/qc:train: row 1", "acme/qc:train: row 2"]
    assert [row.where for row in read_rows("acme/qc:test")] == ["acme/qc:test: row 1", "acme/qc:test: row 2"]


def test_which_split_is_for_what() -> None:
    found = roles(["train", "unsupervised", "validation", "test"])
    assert (found.train, found.heldout, found.unused) == (("train", "unsupervised"), "validation", ("test",))
    assert roles(["train_sft", "test_sft"]).heldout == "test_sft"
    assert roles([None]).heldout is None
