"""`autoft fit`: the longest sequence, the highest rank, the largest batch, the GPUs or the models that fit."""

from __future__ import annotations

from typing import Any

import click

from autoft.cli import options, planning, what_if
from autoft.errors import OptionError


@options.command(
    "Find the limits: the longest sequence, the highest rank or the largest batch that fits MODEL on this machine; "
    "which GPUs fit it; or which models of a family fit here.\n\n"
    "Ask one question at a time. Other options hold as in `autoft plan`. Exits with 3 if nothing fits.",
    examples=(
        "autoft fit qwen2.5-7b-instruct --longest --gpu rtx-3060",
        "autoft fit llama-3.1-8b-instruct --cards --data mine.jsonl",
        "autoft fit qwen2.5-7b-instruct --family --vram 12",
    ),
)
@click.argument("model")
@planning.add(*what_if.QUESTIONS, *planning.DATA, *planning.DEVICE, *planning.RECIPE, *planning.LIMITS)
def command(model: str, as_json: bool, **words: Any) -> int:
    if words["data"] is None and model == "starter":
        words["data"] = "starter"
    answered = what_if.answer(model, words, output=None, explain=False, as_json=as_json)
    if answered is None:
        raise OptionError(
            "no question given", fix=f"autoft fit {model} --longest, --rank, --batch, --cards or --family"
        )
    return answered
