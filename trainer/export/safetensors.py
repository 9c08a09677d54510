"""`--to safetensors`: the merged model as a folder of transformers."""

from __future__ import annotations

import shlex
from pathlib import Path

from autoft.trainer.export.exporter import Bound, Exporter, Order
from autoft.trainer.export.merge import merge
from autoft.trainer.export.reload import reload_folder
from autoft.trainer.export.source import Source

# Assumption: rounding merged weights to bf16 moves log-probs of answers by some 0.005 nats in measured models
MOST_NATS = 0.05
SMALL_FILES_BYTES = 2**26  # assumption: tokenizer, configuration, record


def merged_bytes(source: Source) -> int:
    """Most that the merged folder takes: the base's weights, an untied head, and the small files."""
    config = source.config.get_text_config()
    head_bytes = 4 * int(config.vocab_size) * int(config.hidden_size)
    return sum(path.stat().st_size for path in source.weights.glob("*.safetensors")) + head_bytes + SMALL_FILES_BYTES


def _write(source: Source, aside: Path, order: Order) -> Path:
    merge(source, aside, order.say)
    return aside


def _commands(order: Order) -> tuple[str, ...]:
    where = shlex.quote(str(order.out))
    return (f"vllm serve {where}", f"transformers chat {where}")


EXPORTER = Exporter(
    name="safetensors",
    summary="the merged model, for transformers, vLLM and others",
    is_folder=True,
    check=lambda source, order: None,  # what was trained can be merged
    disk_bytes=lambda source, order: merged_bytes(source),
    write=_write,
    reopen=lambda source, written, order, question: reload_folder(source, written, question),
    bound=lambda order: Bound(of="distance", nats=MOST_NATS),
    commands=lambda source, order: _commands(order),
)
