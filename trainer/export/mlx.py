"""`--to mlx`: the merged model, and the commands that make MLX weights of it on a Mac."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import replace
from pathlib import Path

from autoft.trainer.export import safetensors
from autoft.trainer.export.exporter import Answer, Order, Question
from autoft.trainer.export.source import Source


def _commands(order: Order) -> tuple[str, ...]:
    merged, converted = shlex.quote(str(order.out)), shlex.quote(f"{order.out}-mlx")
    install = () if importlib.util.find_spec("mlx_lm") else ("pip install mlx-lm  # on a Mac with Apple silicon",)
    return (
        *install,
        f"mlx_lm.convert --hf-path {merged} --mlx-path {converted} -q",
        f'mlx_lm.generate --model {converted} --prompt "Hello!"',
    )


def _reopen(source: Source, written: Path, order: Order, question: Question) -> Answer:
    answer = safetensors.EXPORTER.reopen(source, written, order, question)
    note = "the merged folder was loaded again with transformers; MLX runs on a Mac, and was not run"
    return replace(answer, notes=(*answer.notes, note))


EXPORTER = replace(
    safetensors.EXPORTER,
    name="mlx",
    summary="the merged model, with the commands for a Mac",
    reopen=_reopen,
    commands=lambda source, order: _commands(order),
)
