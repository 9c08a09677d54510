"""What will serve the adapter, asked before it is trained: what it refuses, and how it has to be started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoft.errors import OptionError
from autoft.settings import settings_of
from autoft.trainer.adapters.initial import saved_size
from autoft.trainer.recipe import Recipe

MERGED = "leave out --for, and serve what autoft merge makes"


def serving_notes(tool: str | None, pins: Mapping[str, Any]) -> tuple[str, ...]:
    """What to know of serving an adapter of these settings with `tool`, a sentence each.

    tool: "vllm", or None for nothing in particular. pins: fields of the Recipe that are not at their defaults.
    Raises: OptionError for settings whose adapter the tool does not load.
    """
    fields = settings_of(Recipe)
    values = {name: pins.get(name, field.default) for name, field in fields.items()}
    if tool is None or values["method"] == "full":
        return ()
    from autoft.trainer.export.vllm import MAX_RANKS, rank_option

    if values["adapter"] != "lora":
        kind = str(values["adapter"]).upper()
        raise OptionError(
            f"--for vllm: vLLM takes LoRA adapters alone, not {kind}", fix=f"--set adapter=lora, or {MERGED}"
        )
    if values["use_dora"]:
        raise OptionError("--for vllm: vLLM takes no DoRA", fix=f"leave out use_dora, or {MERGED}")
    if values["rope_scaling"] is not None:
        raise OptionError("--for vllm: vLLM would serve the base without the run's rope_scaling", fix=MERGED)
    if values["new_tokens"]:
        raise OptionError("--for vllm: vLLM takes no trained tokens", fix=f"leave out new_tokens, or {MERGED}")
    rank = saved_size(values["init"], values["rank"])
    if rank > MAX_RANKS[-1]:
        fix = f"--set rank={MAX_RANKS[-1] * values['rank'] // rank}, or {MERGED}"
        raise OptionError(f"--for vllm: vLLM takes a rank of {MAX_RANKS[-1]} at most, and {rank} is saved", fix=fix)
    option = rank_option(rank)
    return (f"vLLM serves rank {rank} with {' '.join(option)}",) if option else ()
