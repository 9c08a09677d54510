"""Runs of a tiny model on described cards: the command's words, and what a run has left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "max_steps": 4, "learning_rate": 0.01, "micro_batch": 4, "accumulation": 1, "seq_len": 64, "rank": 4, "alpha": 8,
    "eval_rows": 4, "max_new_tokens": 2, "dropout": 0.0, "loss": "logits", "save_steps": 2,
}  # fmt: skip


def run(model: Path, data: Path, out: Path, *words: object, full: bool = False, **settings: Any) -> list[object]:
    """Words after `autoft` for a run with SETTINGS and these; None leaves one out. full: without an adapter's."""
    every = {**SETTINGS, **(dict.fromkeys(("rank", "alpha", "dropout")) if full else {}), **settings}
    pairs = [f"{name}={value}" for name, value in every.items() if value is not None]
    chosen = [word for pair in pairs for word in ("--set", pair)]
    return ["run", model, "--data", data, "-o", out, *words, *chosen, "--json"]


def weights_of(folder: Path) -> str:
    """Digest of what a run has learnt."""
    return hashlib.sha256(next(folder.glob("*model.safetensors")).read_bytes()).hexdigest()


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind that a run has recorded, unfinished or not."""
    path = next(p / "events.jsonl" for p in (folder, folder.with_name(f"{folder.name}.unfinished")) if p.exists())
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["event"] == kind]
