"""The header of a GGUF file, read with the file's own length in mind: a damaged one claims what could not be in it.

The gguf package, which reads the rest, believes every count: 49 bytes make it build a list of a hundred million.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from autoft.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Of the value types, by number: bytes of one, and how struct reads it
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
LONGEST_KEY = 2**16
DEEPEST = 4  # arrays within arrays
LEAST_TENSOR_BYTES = 24  # of a tensor's entry: its name's length, its dimensions, its type, its place
# (least, most) of what the model's shape is made of, by the end of the key
BOUNDS = {
    ".block_count": (1, 2_000),
    ".embedding_length": (1, 2**20),
    ".feed_forward_length": (0, 2**22),
    ".attention.head_count": (1, 2**14),
    ".attention.head_count_kv": (0, 2**14),
    ".vocab_size": (1, 2**28),
    ".expert_count": (0, 2**14),
    ".context_length": (1, 2**40),
}


def check_header(path: Path) -> None:
    """Raises: ModelError where a count or a figure is none that such a file can have."""
    try:
        with path.open("rb") as file:
            _Header(file, path.stat().st_size, path).check()
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ModelError:
    return ModelError(f"{path}: cut short or damaged", fix="download the file again")


class _Header:
    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file, self.size, self.path = file, size, path

    def check(self) -> None:
        if self.file.read(len(MAGIC)) != MAGIC:
            raise ModelError(
                f"{self.path}: not a GGUF file", fix="give a .gguf file, or the folder of a transformers model"
            )
        version = self._number("<I")
        if version not in VERSIONS:
            raise ModelError(f"{self.path}: GGUF version {version}; autoft reads {VERSIONS}", fix="convert it again")
        tensors, settings = self._number("<Q"), self._number("<Q")
        self._has_room(tensors * LEAST_TENSOR_BYTES)
        self._has_room(settings)
        for _ in range(settings):
            name = self._bytes(LONGEST_KEY).decode()
            kind = self._number("<I")
            if kind in INTEGERS:
                self._within_bounds(name, self._number(SCALARS[kind]))
            else:
                self._skip(kind, 0)

    def _within_bounds(self, name: str, value: int) -> None:
        for end, (least, most) in BOUNDS.items():
            if name.endswith(end) and not least <= value <= most:
                raise ModelError(
                    f"{self.path}: {name} = {value} is not valid for a model", fix="download the file again"
                )

    def _skip(self, kind: int, depth: int) -> None:
        """Pass over one value of this kind."""
        if kind in SCALARS:
            self._number(SCALARS[kind])
        elif kind == STRING:
            self._bytes(self.size)
        elif kind == ARRAY and depth < DEEPEST:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in SCALARS:
                length = count * struct.calcsize(SCALARS[inner])
                self._has_room(length)
                self.file.seek(length, 1)
                return
            self._has_room(8 * count)  # each says how long it is
            for _ in range(count):
                if inner == STRING:  # a vocabulary has hundreds of thousands
                    self.file.seek(min(int.from_bytes(self.file.read(8), "little"), self.size), 1)
                else:
                    self._skip(inner, depth + 1)
            self._has_room(0)
        else:
            raise _damaged(self.path)

    def _bytes(self, most: int) -> bytes:
        length = self._number("<Q")
        if length > most:
            raise _damaged(self.path)
        self._has_room(length)
        return self.file.read(length)

    def _has_room(self, length: int) -> None:
        if length > self.size - self.file.tell():
            raise _damaged(self.path)

    def _number(self, form: str) -> int:
        """An integer; of other numbers only their room counts."""
        (value,) = struct.unpack(form, self.file.read(struct.calcsize(form)))
        return value if isinstance(value, int) else 0
