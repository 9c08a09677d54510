"""A finished run, opened again: its result, its tokenizer, and its model in the precision it was trained in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.errors import ModelError
from autoft.schema import read_text
from autoft.trainer import environment
from autoft.trainer.output import RESULT, unfinished
from autoft.trainer.resolve import fetch, load_config, resolve
from autoft.trainer.result import RunResult


def read_result(folder: Path) -> RunResult:
    """The result.json of a run. Raises: ModelError when `folder` holds no finished run."""
    if not (folder / RESULT).is_file():
        fix = "give the folder that `autoft run` wrote"
        if unfinished(folder).is_dir():
            fix = f"autoft resume {folder} goes on with the unfinished one"
        raise ModelError(f"{folder}: holds no finished run", fix=fix)
    return RunResult.from_dict(_json(folder / RESULT), where=str(folder / RESULT))


def load_trained(folder: Path, result: RunResult, *, for_loss: bool = False) -> Any:
    """Base and adapter, or the whole model, on the GPU if there is one. for_loss: ready for the recipe's loss.

    Raises: ModelError when weights of it, or its base, are gone.
    """
    recipe = result.job.recipe
    whole = recipe.method == "full"
    written = "config.json" if whole else "adapter_config.json"
    if not (folder / written).is_file():
        raise ModelError(f"{folder}: its {written} is gone", fix="run again, or restore the file")
    if whole:
        return _load(str(folder.resolve()), result, for_loss=for_loss)
    model = load_base(result, for_loss=for_loss)
    from peft import PeftModel

    from autoft.trainer.build import torch_dtype

    model = PeftModel.from_pretrained(model, folder).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # PEFT widens what is narrower than float32
            parameter.data = parameter.data.to(torch_dtype(recipe.adapter_dtype))
    return model


def load_base(result: RunResult, *, for_loss: bool = False) -> Any:
    """What the run began with. Raises: ModelError when it is gone."""
    return _load(result.base if Path(result.base).is_dir() else result.job.model, result, for_loss=for_loss)


def load_run_tokenizer(folder: Path) -> Any:
    """The tokenizer that was saved with the run, its chat template with it. Raises: ModelError when it is gone."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{folder}: its tokenizer cannot be read: {reason}", fix="run again, or restore its files"
        ) from error


def _load(name: str, result: RunResult, *, for_loss: bool) -> Any:
    environment.quiet()
    import torch

    from autoft.trainer.build import build_whole_base

    ref = resolve(name)
    weights = fetch(ref)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = result.job.recipe
    if recipe.method == "full" and name != result.base:  # its own config.json has the scaling
        recipe = replace(recipe, rope_scaling=None)
    model = build_whole_base(recipe, load_config(ref, weights), weights, device, for_loss=for_loss).eval()
    model.config.use_cache = True
    return model


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path}:{error.lineno}: not JSON: {error.msg}", fix="run again, or restore the file"
        ) from None
