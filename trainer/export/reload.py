"""What was exported, loaded again in a process of its own: that of fresh.py, or of llama_cpp.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autoft.errors import AutoftError
from autoft.trainer.export.exporter import Answer, Question
from autoft.trainer.export.source import Source
from autoft.trainer.export.texts import TOKENIZED


def reload_folder(source: Source, written: Path, question: Question, *, compare_logits: bool = True) -> Answer:
    """Load an exported folder of transformers, score the texts, and compare its token ids with the run's tokenizer.

    Raises: AutoftError where it does not load, or its tokenizer splits a text otherwise.
    """
    spec = {
        "folder": str(written),
        "dtype": question.dtype,
        "rows": question.texts.rows,
        "scored": question.texts.scored,
        "logits": str(question.logits) if compare_logits else None,
        "texts": TOKENIZED,
    }
    loaded = reload(written, spec)
    check_ids(source, written, loaded["ids"])
    return Answer(logprobs=tuple(loaded["logprobs"]), max_logit=loaded["max_logit"])


def check_ids(source: Source, written: Path, ids: list[list[int]]) -> None:
    """Raises: AutoftError where an export's tokenizer splits one of TOKENIZED otherwise than the run's."""
    for text, theirs in zip(TOKENIZED, ids, strict=True):
        ours = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise AutoftError(
                f"{written.name}: its tokenizer splits {text[:40]!r} into {theirs[:8]}, the run's into {ours[:8]}",
                fix="report it with the name of the base",
            )


def reload(path: Path, spec: dict[str, Any], *, module: str = "autoft.trainer.export.fresh") -> dict[str, Any]:
    """Load `path` in a fresh process as `spec` says, and return its answer.

    module: what that process runs. Raises: AutoftError with the last line that it wrote when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "spec.json"), Path(folder, "answer.json")
        question.write_text(json.dumps(spec), encoding="utf-8")
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", module, str(question), str(answer)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0 or not answer.is_file():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1][:200] if lines else f"exit code {done.returncode}"
            raise AutoftError(f"{path}: cannot be loaded again: {reason}", fix="report it, with this line")
        loaded: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return loaded
