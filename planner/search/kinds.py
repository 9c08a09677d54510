"""What is known of the kind of adapter that the user has set, and of how it begins: evidence, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autoft.planner.facts import Reason
from autoft.trainer.adapters.initial import FROM_WEIGHTS, TITLES, saved_size
from autoft.trainer.recipe import Recipe

COMPARISON = "PEFT's MetaMathQA comparison (Llama-3.2-3B)"


def kind_reasons(pins: Mapping[str, Any]) -> Iterator[Reason]:
    """A reason for each of these settings. pins: fields of the Recipe that are set."""
    if pins.get("adapter") == "oft":
        yield Reason(
            key="adapter",
            text=f"OFT: .494 in {COMPARISON} where LoRA had .482, at 21 % more time; one seed each",
            figures={"accuracy": 0.494, "lora_accuracy": 0.482, "seconds": 2167, "lora_seconds": 1796},
        )
    if pins.get("adapter") == "prompt":
        yield Reason(
            key="adapter",
            text=f"prompt tuning: .391 in {COMPARISON} where LoRA had .482, at 34 % more time; 200 virtual tokens, "
            "one seed each",
            figures={"accuracy": 0.391, "lora_accuracy": 0.482, "seconds": 2404, "lora_seconds": 1796},
        )
    words, first = pins.get("new_tokens", ()), pins.get("first_new_id", 0)
    if words:
        numbers = f"id {first}" if len(words) == 1 else f"ids {first} to {first + len(words) - 1}"
        yield Reason(
            key="new_tokens",
            text=f"{len(words)} new tokens ({numbers}): each begins as the mean of the tokens that its word was before",
            figures={"tokens": len(words), "first_id": first},
        )
    init = pins.get("init", "default")
    if init in FROM_WEIGHTS:
        rank = saved_size(init, pins.get("rank", Recipe.__dataclass_fields__["rank"].default))
        yield Reason(
            key="init",
            text=f"{TITLES[init]} init: saved as plain LoRA of rank {rank} for the unchanged base; {COMPARISON} has no "
            "run with it",
            figures={"saved_rank": rank},
        )
    ratio = pins.get("lora_plus_ratio", 1.0)
    if ratio > 1:
        yield Reason(
            key="lora_plus_ratio",
            text=f"LoRA+: B learns {ratio:g} times as fast as A; lower learning_rate if the loss jumps (PEFT advises "
            f"about half of LoRA's). {COMPARISON} has no run with it",
            figures={"ratio": ratio},
        )
