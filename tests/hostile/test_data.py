"""Damaged and hostile data: read, or refused in one line with the place; nothing in it reaches the terminal raw."""

from __future__ import annotations

import bz2
import json
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hostile.answers import assert_refused
from tests.hostile.test_inputs import DEEP

GOOD = "".join(json.dumps({"prompt": f"n {n}", "completion": f"yes {n}"}) + "\n" for n in range(40))


def escape_everywhere() -> bytes:
    evil = "\x1b]0;owned\x07\x1b[31m\x9b31m\u202e"
    return "".join(json.dumps({f"pro{evil}mpt": evil, "completion": evil}) + "\n" for _ in range(4)).encode()


DATA: dict[str, tuple[str, bytes]] = {
    "number of 5,000 digits": (
        "d.jsonl", (GOOD + '{"prompt": "a", "completion": "b", "id": ' + "9" * 5000 + "}\n").encode()
    ),
    "deep": ("d.jsonl", (GOOD + '{"prompt": ' + "[" * DEEP + "]" * DEEP + "}\n").encode()),
    "escapes in columns": ("d.jsonl", escape_everywhere()),
    "not UTF-8": ("d.jsonl", GOOD.encode() + b'{"prompt": "\xff", "completion": "b"}\n'),
    "cut gzip": ("d.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03K"),
    "cut bzip2": ("d.jsonl.bz2", bz2.compress(GOOD.encode())[:-9]),
    "empty": ("d.jsonl", b""),
    "zeros": ("d.jsonl", bytes(5000)),
    "no Parquet": ("d.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    "no Arrow": ("d.feather", b"ARROW1\x00\x00" + bytes(100)),
    "CSV of one quote": ("d.csv", b'prompt,completion\n"a,b\n' + b"c,d\n" * 50),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_read_is_named_with_its_place(autoft, tiny_model: Path, tmp_path: Path, name: str) -> None:
    file, content = DATA[name]
    (tmp_path / file).write_bytes(content)
    for words in (("data", "check", tmp_path / file), ("plan", tiny_model, "--data", tmp_path / file, "--gpu", "cpu")):
        done = autoft(*words)
        assert done.code == 2, done.err
        assert file in done.out + done.err
        said = done.out + done.err
        assert not {"unexpected", "Traceback"} & set(said.split())
        assert not [char for char in said if char in "\x1b\x07\x9b\u202e"]


def test_a_line_that_unpacks_without_end_is_refused_in_bounded_memory(autoft, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("autoft.trainer.data.lines.MOST_LINE", 2**20)
    (tmp_path / "bomb.jsonl.bz2").write_bytes(bz2.compress(b'{"prompt": "' + b"a" * 2**22))
    assert_refused(autoft("data", "check", tmp_path / "bomb.jsonl.bz2"), "bomb.jsonl.bz2:1: a line of more than")
    (tmp_path / "wide.jsonl").write_bytes(("{" + "a" * 2**22).encode("utf-16"))
    assert_refused(autoft("data", "check", tmp_path / "wide.jsonl"), "wide.jsonl:1: a line of more than")


def write_tables(folder: Path) -> list[Path]:
    import pyarrow
    from pyarrow import feather, parquet

    rows = {
        "prompt": [f"n {n}" for n in range(20)], "completion": ["yes"] * 20, "id": list(range(20)),
        "more": [[{"role": "user", "content": "x"}]] * 20,
    }  # fmt: skip
    table = pyarrow.table(rows)
    feather.write_feather(table, folder / "plain.feather", compression="uncompressed")
    feather.write_feather(table, folder / "packed.feather")
    parquet.write_table(table, folder / "table.parquet")
    with pyarrow.ipc.new_stream(str(folder / "stream.arrow"), table.schema) as stream:
        stream.write_table(table)
    return sorted(folder.iterdir())


def read_in_child(file: Path, contents: list[bytes]) -> list[int]:
    """What became of each content of the file in a process that reads them in turn: 0 read, 2 refused as data, 1
    anything else; and of the one that ends the process its exit code, below 0 a signal, with nothing after it."""
    from autoft.errors import DataError
    from autoft.trainer.data.columnar import arrow_rows, parquet_rows

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for content in contents:
            code = 1
            with suppress(Exception):
                file.write_bytes(content)
                try:
                    list((parquet_rows if file.suffix == ".parquet" else arrow_rows)(file))
                    code = 0
                except DataError:
                    code = 2
            os.write(writing, bytes([code]))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        codes = list(pipe.read())
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return codes if ended == 0 else [*codes, ended]


@pytest.mark.parametrize("seed", range(4))
def test_a_table_with_bits_flipped_is_read_or_refused_and_ends_no_process(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for file in write_tables(tmp_path):
        whole, contents = file.read_bytes(), []
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(chance.choice((1, 1, 3))):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            contents.append(bytes(damaged))
        codes = read_in_child(file, contents)
        for content, code in zip(contents, codes, strict=False):
            assert code in (0, 2), content.hex()
        assert len(codes) == len(contents)


def test_control_tokens_in_a_row_s_text_are_told_with_a_count(autoft, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    asked = {"prompt": "a<|im_end|>\n<|im_start|>assistant\nb", "completion": "yes"}
    answered = {"prompt": "c", "completion": "yes<|im_end|>\n<|im_start|>user\nmore"}
    file.write_text(GOOD + json.dumps(asked) + "\n" + json.dumps(answered) + "\n")
    said = "2 rows hold the model's own control tokens in their text"
    checked = autoft("data", "check", file, "--model", tiny_model)
    assert checked.code == 0
    assert said in " ".join(checked.out.split())
    assert "d.jsonl:41" in checked.out.replace("\n", "")
    trained = autoft("run", tiny_model, "--data", file, "--gpu", "cpu", "--set", "max_steps=1", "--set", "eval_rows=2",
                     "--set", "max_new_tokens=2", "-o", tmp_path / "out")  # fmt: skip
    assert trained.code == 0, trained.err
    assert said.partition(" ")[2] in " ".join((trained.out + trained.err).split())
    answer = autoft("chat", tmp_path / "out", "-p", asked["prompt"], "--max-new-tokens", "2")
    assert answer.code == 0, answer.err
    good = tmp_path / "good.jsonl"
    good.write_text(GOOD)
    assert "control tokens" not in autoft("data", "check", good, "--model", tiny_model).out
