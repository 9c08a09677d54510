"""A damaged .gguf file: one line that names it, in seconds, whatever it claims to hold."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from autoft.errors import ModelError
from autoft.trainer.sources.gguf import check_gguf
from tests.hostile.answers import assert_refused

U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def gguf(*entries: bytes, version: int = 3, tensors: int = 0, settings: int | None = None) -> bytes:
    counts = struct.pack("<IQQ", version, tensors, len(entries) if settings is None else settings)
    return b"GGUF" + counts + b"".join(entries)


LLAMA = entry("general.architecture", STRING, text("llama"))
FILES: dict[str, bytes] = {
    "empty": b"",
    "no magic": b"GGML" + bytes(60),
    "magic alone": b"GGUF",
    "version 0": gguf(version=0),
    "version of the future": gguf(version=2**31),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "no tensors": gguf(LLAMA),
    "10^18 tensors": gguf(LLAMA, tensors=10**18),
    "10^18 settings": gguf(LLAMA, settings=10**18),
    "one setting too many": gguf(LLAMA, settings=2),
    "array of 10^8": gguf(entry("a", ARRAY, struct.pack("<IQ", U32, 10**8))),
    "array of 2^64 - 1": gguf(entry("a", ARRAY, struct.pack("<IQ", U64, 2**64 - 1))),
    "array of 10^9 texts": gguf(entry("a", ARRAY, struct.pack("<IQ", STRING, 10**9))),
    "arrays within arrays": gguf(entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)),
    "text of 2^63": gguf(entry("a", STRING, struct.pack("<Q", 2**63))),
    "key of 2^40": gguf(struct.pack("<Q", 2**40)),
    "key that is no UTF-8": gguf(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", U32, 1)),
    "type of no kind": gguf(entry("a", 77, bytes(8))),
    "embedding of 0": gguf(LLAMA, u32("llama.embedding_length", 0)),
    "layers of 10^9": gguf(LLAMA, u32("llama.block_count", 10**9)),
    "no heads": gguf(LLAMA, u32("llama.attention.head_count", 0)),
    "vocabulary of 2^31": gguf(LLAMA, u32("llama.vocab_size", 2**31)),
    "architecture of no kind": gguf(entry("general.architecture", STRING, text("\x1b[31mno-such"))),
    "web page": b"<!doctype html><html><body>404</body></html>",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_gguf_is_refused_by_name(autoft, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.gguf").write_bytes(FILES[name])
    assert_refused(autoft("plan", tmp_path / "model.gguf", "--gpu", "cpu"), "model.gguf")


def damaged(whole: bytes, chance: random.Random) -> Iterator[bytes]:
    """With bits flipped, bytes of the header written over, or cut."""
    for _ in range(60):
        changed = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4))):
            changed[chance.randrange(min(400, len(changed)))] ^= 1 << chance.randrange(8)
        yield bytes(changed)
        at = chance.randrange(4, 200)
        yield whole[:at] + chance.randbytes(8) + whole[at + 8 :]
        yield whole[: chance.randrange(len(whole))]


@pytest.mark.parametrize("seed", range(3))
def test_a_gguf_with_a_damaged_header_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    whole = gguf(
        LLAMA, u32("llama.block_count", 2), u32("llama.embedding_length", 64),
        entry("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("b") + text("c")),
        tensors=1,
    ) + text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 3, 0, 0) + bytes(1024)  # fmt: skip
    file = tmp_path / "model.gguf"
    file.write_bytes(whole)
    check_gguf(file)
    for content in damaged(whole, random.Random(seed)):
        file.write_bytes(content)
        with suppress(ModelError):
            check_gguf(file)
