"""What was exported, loaded again in a process of its own: that of fresh.py, or of llama_cpp.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoft.errors import AutoftError
from autoft.trainer.export.exporter import Answer, Question
from autoft.trainer.export.source import Source
from autoft.trainer.export.texts import TOKENIZED


def reload_folder(source: Source, written: Path, question: Question, *, base: Path | None = None) -> Answer:
    """Load an exported folder of transformers, score the texts, and compare its token ids with the run's tokenizer.

    base: the folder of the base, where `written` holds an adapter alone.
    Raises: AutoftError where it does not load, or its tokenizer splits a text otherwise.
    """
    spec = {
        "folder": str(written if base is None else base),
        "adapter": str(written) if base is not None else None,
        "tokenizer": str(written),
        "dtype": question.dtype,
        "rows": question.texts.rows,
        "scored": question.texts.scored,
        "logits": str(question.logits),
        "texts": (texts := texts_to_split(question)),
    }
    loaded = run_module("autoft.trainer.export.fresh", spec)
    check_ids(source, written, texts, loaded["ids"])
    return Answer(logprobs=tuple(loaded["logprobs"]), max_logit=loaded["max_logit"])


def texts_to_split(question: Question) -> list[str]:
    """The rows as text, then TOKENIZED: what tokenizers are compared on."""
    return [*question.texts.written, *TOKENIZED]


def check_ids(source: Source, written: Path, texts: Sequence[str], ids: Sequence[list[int]], *, most: int = 0) -> str:
    """A note where an export's tokenizer splits up to `most` of TOKENIZED otherwise than the run's, else nothing.

    Raises: AutoftError where it splits more of them, or a row, otherwise.
    """
    ours = [source.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    others = [text for text, left, right in zip(texts, ours, ids, strict=True) if left != right]
    num_rows = len(texts) - len(TOKENIZED)
    if not others:
        return ""
    first = others[0][:40]
    if ours[:num_rows] != list(ids[:num_rows]) or len(others) > most:
        raise AutoftError(
            f"{written.name}: its tokenizer splits {len(others)} of {len(texts)} texts otherwise, {first!r} for one",
            fix="report it with the name of the base",
        )
    return f"its tokenizer splits {len(others)} of {len(texts)} texts otherwise than transformers, {first!r} for one"


def run_module(module: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a module of this package in a process of its own, on the CPU, and return its answer to `spec`.

    Raises: AutoftError with the last line that it wrote, when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="autoft-") as folder:
        question, answer = Path(folder, "spec.json"), Path(folder, "answer.json")
        question.write_text(json.dumps(spec), encoding="utf-8")
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", module, str(question), str(answer)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0 or not answer.is_file():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            told_by_llama_cpp = [line for line in lines if "error loading model:" in line]
            reason = (told_by_llama_cpp or lines or [f"exit code {done.returncode}"])[-1][:200]
            raise AutoftError(f"{module.rpartition('.')[2]}: {reason}", fix="report it, with this line")
        loaded: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return loaded
