"""Answers kept on the disk: each under the digest of its question, the oldest beyond some number gone."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.home import home, write_text

KEPT_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class Shelf:
    """name: of a folder in AUTOFT_HOME."""

    name: str

    def read(self, key: str) -> Any:
        """The answer that was kept under `key`; None where there is none, or none that is whole."""
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            entry = json.loads(self.path(key).read_text(encoding="utf-8"))
            answer = entry["answer"]
            if entry["key"] == key and entry["sha256"] == digest([key, answer]):
                return answer
        return None

    def keep(self, key: str, answer: Any) -> None:
        """Where AUTOFT_HOME can be written to."""
        entry = {"key": key, "sha256": digest([key, answer]), "answer": answer}
        with suppress(OSError):
            self._folder().mkdir(parents=True, exist_ok=True)
            write_text(self.path(key), json.dumps(entry))
            for old in sorted(self._folder().glob("*.json"), key=_age, reverse=True)[KEPT_ENTRIES:]:
                old.unlink(missing_ok=True)

    def _folder(self) -> Path:
        return home() / self.name

    def path(self, key: str) -> Path:
        return self._folder() / f"{key}.json"


def digest(value: Any) -> str:
    """SHA-256 in hex digits of what JSON can say, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _age(path: Path) -> float:
    """Time of the last change; a file that is gone meanwhile counts as the oldest."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
