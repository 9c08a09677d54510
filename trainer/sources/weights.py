"""Are the weights of a folder all there and whole? Told from their index and headers, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from autoft.errors import FileFormatError, ModelError
from autoft.schema import parse_json

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
INDEX = "model.safetensors.index.json"
MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
ADAPTER = "adapter_"  # how PEFT's files begin
SAMPLE_BYTES = 256
MOST_SAMPLES = 4096  # of a file: each is a read, and a mixture has tensors by the ten thousand


def fingerprint(folder: Path) -> str:
    """SHA-256 of what the safetensors files of a folder say of their tensors, and of a sample of each tensor's bytes.

    It tells another fine-tune of the same base, whose files are of the same sizes, in the time that a few reads take.
    """
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            digest.update(header)
            begin = file.tell()
            spans = sorted(
                tensor["data_offsets"] for name, tensor in json.loads(header).items() if name != "__metadata__"
            )
            for first, last in spans[:: 1 + len(spans) // MOST_SAMPLES]:
                file.seek(begin + (first + last) // 2)
                digest.update(file.read(min(SAMPLE_BYTES, last - (first + last) // 2)))
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(ADAPTER)]


def check_weights(folder: Path) -> None:
    """Raises: ModelError where the base's weights are missing, pickles, Git LFS pointers, or cut short."""
    files = _files(folder)
    index = folder / INDEX
    if index.is_file():
        files = [folder / name for name in _shards(index)]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise ModelError(
                f"{folder}: {len(missing)} of {len(files)} weight files are missing, {missing[0]} for one",
                fix="download the missing files",
            )
    if not files:
        _refuse_without_weights(folder)
    for path in files:
        read_tensors(path)


def _shards(index: Path) -> list[str]:
    values = parse_json(index.read_bytes(), where=str(index))
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index}: has no weight_map", fix="download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index}: names {name}, which is outside the folder", fix="download it again")
        if not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: names {name}, which is not a .safetensors file",
                fix="use a copy of the model with .safetensors",
            )
    return names


def _refuse_without_weights(folder: Path) -> None:
    pickles = sorted(p.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(suffix))
    if pickles:
        raise ModelError(
            f"{folder}: weights only as pickles ({', '.join(pickles[:3])}), which can run any code when opened",
            fix="use a copy of the model with .safetensors files, or convert it where you trust it",
        )
    raise ModelError(
        f"{folder}: a configuration but no weights: enough to plan, not to train",
        fix="add the model's .safetensors files",
    )


def read_tensors(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: `dtype`, `shape` and `data_offsets` of each tensor, by its name.

    It says how long the file is: 8 bytes of its own length, itself, and the tensors to their last byte.
    Raises: ModelError for a Git LFS pointer, or a file that is not whole.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ModelError(f"{path}: a Git LFS pointer, which stands for the weights", fix="git lfs pull")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, MOST_HEADER_BYTES))
    size = path.stat().st_size
    try:
        entries = parse_json(header, where=str(path))
        tensors = {name: tensor for name, tensor in entries.items() if name != "__metadata__"}
        expected = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (FileFormatError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path}: not a whole safetensors file", fix="download it again") from error
    if size != expected:
        raise ModelError(
            f"{path}: {size:,} bytes, and its header names {expected:,}: it was cut short or changed",
            fix="download it again",
        )
    return tensors
