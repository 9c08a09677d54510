"""Which recipes are worth an estimate? Every legal combination of the few choices that matter, pinned ones fixed."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from autoft.errors import FileFormatError, OptionError, near
from autoft.planner.target import Target
from autoft.trainer.job import Job
from autoft.trainer.recipe import Attention, Method, Recipe

METHODS: tuple[Method, ...] = ("lora", "qlora")
# Of the Job, what the plan decides itself or the command line has an option for.
NOT_PINNABLE = ("model", "data", "eval_data", "mapping", "recipe", "device")
# Of the Recipe, what is right or wrong only beside another field.
COUPLED = ("method", "quant_type", "double_quant", "experts_4bit", "autocast", "offload_checkpoints")


def candidates(
    target: Target, *, seq_len: int, rows_per_step: int, attention: Attention = "sdpa", pinned: dict[str, Any]
) -> list[Recipe]:
    """Recipes for `target`, each once: method x checkpointing x micro-batch, the rest by the device's ability.

    rows_per_step: sequences in an optimizer step; the micro-batch divides it. attention: what the model takes.
    pinned: fields of the Recipe that the user has set; a combination they contradict is left out.
    Raises: FileFormatError when a pinned value is wrong whatever it is combined with.
    """
    found: dict[Recipe, None] = {}
    problem: FileFormatError | None = None
    for micro_batch in _divisors_of_two(rows_per_step):
        for checkpointing in (False, True):
            for method in METHODS:
                if pinned.get("method", method) != method:
                    continue
                base = _recipe(target, method, checkpointing=checkpointing, micro_batch=micro_batch, seq_len=seq_len)
                try:
                    found.setdefault(_pin(replace(base, attention=attention), pinned))
                except FileFormatError as error:
                    problem = error
    if not found:
        assert problem is not None
        raise problem
    return list(found)


def parse_settings(settings: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`key=value` words as (fields of the Recipe, fields of the Job), values read as TOML, else as text.

    Raises: OptionError for a word without "=" and for an unknown key, FileFormatError for a wrong value.
    """
    recipe_keys = {field.name for field in dataclasses.fields(Recipe)}
    job_keys = {field.name for field in dataclasses.fields(Job)} - set(NOT_PINNABLE)
    recipe: dict[str, Any] = {}
    job: dict[str, Any] = {}
    for word in settings:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals:
            raise OptionError(f"--set {word}: not of the form key=value", fix=f"--set {key or 'rank'}=...")
        if key not in recipe_keys | job_keys:
            raise OptionError(
                f"--set {word}: no setting {key!r}.{near(key, recipe_keys | job_keys)}",
                fix=f"one of: {', '.join(sorted(recipe_keys | job_keys))}",
            )
        (recipe if key in recipe_keys else job)[key] = _value(text.strip())
    for key, value in recipe.items():
        if key not in COUPLED:
            Recipe.from_dict({key: value}, where="--set")
    Job.from_dict({"model": "", "recipe": {}, **job}, where="--set")
    if recipe.get("method", "lora") not in METHODS:
        raise OptionError(
            f"--set method={recipe['method']}: not known.{near(str(recipe['method']), METHODS)}",
            fix=f"one of: {', '.join(METHODS)}",
        )
    return recipe, job


def _recipe(target: Target, method: Method, *, checkpointing: bool, micro_batch: int, seq_len: int) -> Recipe:
    """The device's own defaults around the choices that vary."""
    quantized = method == "qlora"
    return Recipe(
        method=method,
        base_dtype=target.half_dtype or "float32",
        quant_type="nf4" if quantized else None,
        double_quant=quantized,
        autocast=target.half_dtype is not None,
        micro_batch=micro_batch,
        seq_len=seq_len,
        gradient_checkpointing=checkpointing,
        loss="fused" if target.device == "cuda" else "selected",
    )


def _pin(recipe: Recipe, pinned: dict[str, Any]) -> Recipe:
    values = {**recipe.to_dict(), **pinned}
    if values["base_dtype"] == "float32" and "autocast" not in pinned:
        values["autocast"] = False
    if values["quant_type"] == "int8" and "double_quant" not in pinned:
        values["double_quant"] = False
    return Recipe.from_dict(values, where="--set")


def _divisors_of_two(number: int) -> list[int]:
    """number, number/2, number/4, ... as long as they are whole."""
    found = [number]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found


def _value(text: str) -> Any:
    from autoft.schema import parse_toml

    try:
        return parse_toml(f"value = {text}", where="--set")["value"]
    except FileFormatError:
        return text
