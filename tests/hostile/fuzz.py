"""Fuzzing of what autoft reads: `python tests/hostile/fuzz.py MINUTES` (`make fuzz`) lets atheris look for a way in.

Each target reads bytes as one kind of file. An error of autoft's own is an answer; anything else is a finding.
tests/hostile/test_fuzz.py tries the same targets for seconds, without atheris.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from autoft.errors import AutoftError

ROOT = Path(__file__).parent.parent.parent
_PLACE = tempfile.TemporaryDirectory(prefix="autoft-fuzz-")  # removed when the process ends
FOLDER = Path(_PLACE.name)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather", ".jsonl.gz", ".jsonl.bz2")
ROW = {"prompt": "a", "completion": "b"}
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}


def plan_file(content: bytes) -> None:
    from autoft.planner.plan.record import read_plan

    with suppress(AutoftError):
        read_plan(_file("plan.toml", content))


def data(content: bytes) -> None:
    """The first byte says under what name."""
    from autoft.trainer.data.load import load_rows

    suffix = SUFFIXES[content[0] % len(SUFFIXES)] if content else ".jsonl"
    with suppress(AutoftError):
        load_rows(str(_file(f"data{suffix}", content[1:])), most=10)


def gguf(content: bytes) -> None:
    from autoft.trainer.sources.gguf import check_gguf

    with suppress(AutoftError):
        check_gguf(_file("model.gguf", content))


def config(content: bytes) -> None:
    from autoft.trainer.sources.resolve import load_config, resolve

    with suppress(AutoftError):
        load_config(resolve(str(_file("model/config.json", content).parent)))


def weights(content: bytes) -> None:
    from autoft.trainer.sources.weights import check_weights, fingerprint

    with suppress(AutoftError):
        folder = _file("weights/model.safetensors", content).parent
        check_weights(folder)
        fingerprint(folder)


def result(content: bytes) -> None:
    from autoft.trainer.evaluation.open_run import read_result

    with suppress(AutoftError):
        read_result(_file("run/result.json", content).parent)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (plan_file, data, gguf, config, weights, result)
}


def seeds(name: str) -> list[bytes]:
    """Whole files of the kind, to begin with."""
    row = json.dumps(ROW).encode()
    tensors = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    found: dict[str, list[bytes]] = {
        "plan_file": [(ROOT / "tests" / "data" / "plan-v1.toml").read_bytes()],
        "data": [
            bytes([at]) + text
            for at, text in enumerate(
                [row * 2, b"[" + row + b"]", b"prompt,completion\na,b\n", b"prompt\tcompletion\n"]
            )
        ],
        "gguf": [
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + struct.pack("<Q", 1)
            + b"a"
            + struct.pack("<IIQ", 9, 4, 2)
            + bytes(8)
        ],
        "config": [json.dumps(CONFIG).encode()],
        "weights": [len(tensors).to_bytes(8, "little") + tensors + bytes(8)],
        "result": [b'{"schema_version": 1, "autoft_version": "0.1.0", "artifacts": {}}'],
    }
    return found[name]


def _file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def main() -> int:
    """Every target in a process of its own, for its part of the minutes."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    failed = []
    for name in TARGETS:
        print(f"fuzzing {name}", flush=True)
        words = [sys.executable, __file__, "--target", name, str(round(60 * minutes / len(TARGETS)))]
        if subprocess.run(words, cwd=FOLDER, check=False).returncode:
            failed.append(name)
    print(f"findings in: {', '.join(failed)}" if failed else "no finding", flush=True)
    return 1 if failed else 0


def _fuzz(name: str, seconds: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["autoft"]):
        TARGETS[name](b"")  # imports what it needs
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(content)
    atheris.Setup([name, str(corpus), f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=20"], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--target"]:
        _fuzz(*sys.argv[2:4])
    else:
        sys.exit(main())
