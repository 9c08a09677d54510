"""Which recipes are worth an estimate? Every legal combination of the few choices that matter, pinned ones fixed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, get_args

from autoft.errors import FileFormatError, OptionError, near
from autoft.planner.synonyms import setting_called, switch_called
from autoft.planner.target import Target
from autoft.trainer.job import Device, Job
from autoft.trainer.recipe import Attention, Dtype, Method, Optimizer, Recipe

METHODS: tuple[Method, ...] = get_args(Method)
# How the base is held: a method with its quantization. Full fine-tuning is looked at only where it is asked for.
BASES: tuple[dict[str, Any], ...] = (
    {"method": "lora"},
    {"method": "qlora", "quant_type": "nf4", "double_quant": True},
    {"method": "qlora", "quant_type": "nf4", "double_quant": True, "experts_4bit": True},
    {"method": "qlora", "quant_type": "int8"},
    {"method": "full"},
    {"method": "full", "optimizer": "adamw_8bit"},
    {"method": "full", "optimizer": "paged_adamw_8bit"},
)
# What is done to keep less of the forward, each saving more and taking longer than the one before
SAVINGS: tuple[dict[str, Any], ...] = (
    {},
    {"gradient_checkpointing": True, "checkpoint_every": 2},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "offload_checkpoints": True},
)
# For where a step misses by no more than its optimizer's state: which one has less of it on the card
LIGHTER: dict[Optimizer, Optimizer] = {
    "adamw_torch": "adamw_8bit",
    "adamw_torch_fused": "adamw_8bit",
    "adamw_8bit": "paged_adamw_8bit",
}
# Of the Job, what the plan decides itself or the command line has an option for.
NOT_PINNABLE = ("model", "data", "eval_data", "mapping", "recipe", "device")
SHORT_DTYPES: dict[Dtype, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
ALL_LINEAR = "all-linear"
LISTS = ("report_to",)  # of several words, with commas between them
# Of the Recipe, what is right or wrong only beside another field.
COUPLED = (
    "method", "quant_type", "double_quant", "experts_4bit", "autocast", "use_dora", "checkpoint_every",
    "offload_checkpoints",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """Recipes that differ in their micro-batch alone, the smallest first.

    base: its place in BASES. saving: a higher one of the same base needs less memory and more time.
    """

    base: int
    saving: int
    recipes: tuple[Recipe, ...]


def families(
    target: Target,
    *,
    seq_len: int,
    rows_per_step: int,
    attention: Attention = "sdpa",
    experts: bool = False,
    pinned: dict[str, Any],
) -> list[Family]:
    """Recipes for `target`, each once: base x saving x micro-batch, the rest by the device's ability.

    Args:
        rows_per_step: sequences in an optimizer step; the micro-batch divides it.
        attention: what the model takes.
        experts: whether the model has experts that can be held in 4 bits.
        pinned: fields of the Recipe that the user has set; a combination they contradict is left out.

    Raises: FileFormatError when a pinned value is wrong whatever it is combined with.
    """
    found: list[Family] = []
    seen: set[Recipe] = set()
    problem: FileFormatError | None = None
    for base, saving in ((base, saving) for base in _bases(pinned) for saving in SAVINGS):
        if target.device == "cpu" and "offload_checkpoints" in saving:
            continue  # they are in the host's memory as it is
        if "experts_4bit" in base and not experts:
            continue
        recipes: list[Recipe] = []
        for micro_batch in _micro_batches(rows_per_step):
            varied = {**base, **saving, "micro_batch": micro_batch}
            try:
                recipe = _pin(_recipe(target, seq_len, attention), varied, pinned)
            except FileFormatError as error:
                problem = error
                continue
            if recipe not in seen:
                seen.add(recipe)
                recipes.append(recipe)
        if recipes:
            found.append(Family(BASES.index(base), saving_of(recipes[0]), tuple(recipes)))
    if not found:
        assert problem is not None
        raise problem
    return sorted(found, key=lambda family: (family.base, family.saving))


def exact(target: Target, *, seq_len: int, attention: Attention = "sdpa", pinned: dict[str, Any]) -> Recipe:
    """The one Recipe that `pinned` describes: what is left out is the device's default, or else what goes with it.

    Raises: FileFormatError when a pinned value is wrong whatever it is combined with.
    """
    problem: FileFormatError | None = None
    whole = _recipe(target, seq_len, attention)
    for base, saving in ((base, saving) for saving in SAVINGS for base in _bases(pinned)):
        if "checkpoint_every" in saving:
            continue  # only where it is pinned
        try:
            return _pin(whole, {"micro_batch": 1, **base, **saving}, pinned)
        except FileFormatError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def lighter(recipe: Recipe, device: Device, pinned: dict[str, Any]) -> Recipe | None:
    """The same with less optimizer state on the card. Full fine-tuning has bases of its own for that."""
    if device == "cpu" or recipe.method == "full" or "optimizer" in pinned:
        return None
    optimizer = LIGHTER.get(recipe.optimizer)
    return None if optimizer is None else replace(recipe, optimizer=optimizer)


def parse_settings(settings: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`key=value` words as (fields of the Recipe, fields of the Job), values read as TOML, else as text; the last wins.

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
            raise _unknown(word, key, text.strip(), sorted(recipe_keys | job_keys))
        value = _value(text.strip())
        if key == "target_modules" and isinstance(value, str) and value != ALL_LINEAR:
            value = [each.strip() for each in value.split(",") if each.strip()]
        if key == "thinking" and isinstance(value, bool):
            value = "on" if value else "off"
        if key in LISTS:
            value = tuple(value if isinstance(value, list) else [each.strip() for each in str(value).split(",")])
        (recipe if key in recipe_keys else job)[key] = value
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


def _unknown(word: str, key: str, value: str, known: list[str]) -> OptionError:
    ours, switch = setting_called(key), switch_called(key, value)
    if ours in known:
        return OptionError(f"--set {word}: the setting is called {ours} here", fix=f"--set {ours}={value}")
    if ours == "seq_len" or switch is not None:
        return OptionError(f"--set {word}: no setting {key!r}", fix=switch or f"--seq-len {value}")
    return OptionError(f"--set {word}: no setting {key!r}.{near(key, known)}", fix=f"one of: {', '.join(known)}")


def describe(recipe: Recipe, *, micro_batch: bool = True) -> str:
    """QLoRA (NF4), micro-batch 4, gradient checkpointing, 8-bit optimizer; or all but the micro-batch."""
    parts = [describe_base(recipe)]
    if micro_batch:
        parts.append(f"micro-batch {recipe.micro_batch}")
    if recipe.gradient_checkpointing:
        every = "" if recipe.checkpoint_every == 1 else f" every {_ordinal(recipe.checkpoint_every)} layer"
        parts.append(f"gradient checkpointing{every}{' in host RAM' if recipe.offload_checkpoints else ''}")
    if state_bits(recipe) == 8 and recipe.method != "full":  # whose base tells
        parts.append(f"{'paged ' if recipe.optimizer.startswith('paged') else ''}8-bit optimizer")
    return ", ".join(parts)


def _ordinal(number: int) -> str:
    """2nd, 3rd, 4th."""
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"


def describe_base(recipe: Recipe) -> str:
    """LoRA (bf16 base), QLoRA (NF4), full fine-tuning (fp32, adamw_8bit)."""
    if recipe.method == "full":
        return f"full fine-tuning ({SHORT_DTYPES[recipe.weights_dtype]}, {recipe.optimizer})"
    if recipe.quant_type is None:
        return f"LoRA ({SHORT_DTYPES[recipe.base_dtype]} base)"
    experts = ", 4-bit experts" if recipe.experts_4bit else ""
    return f"QLoRA ({recipe.quant_type.upper()}{experts})"


def base_bits(recipe: Recipe) -> int:
    """Of a weight of the base's linear layers: 4, 8, or 16, which stands for all more."""
    return {None: 16, "int8": 8}.get(recipe.quant_type, 4)


def state_bits(recipe: Recipe) -> int:
    """Of a number in the optimizer's state: 8, or 32, which stands for the weights' own."""
    return 8 if recipe.optimizer.endswith("8bit") else 32


def _bases(pinned: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the pinned method."""
    wanted = pinned.get("method")
    return [base for base in BASES if base["method"] == wanted or (wanted is None and base["method"] != "full")]


def _recipe(target: Target, seq_len: int, attention: Attention) -> Recipe:
    """The device's own defaults around the choices that vary."""
    return Recipe(
        attention=attention,
        optimizer="adamw_torch_fused" if target.device == "cuda" else "adamw_torch",
        base_dtype=target.half_dtype or "float32",
        autocast=target.half_dtype is not None,
        seq_len=seq_len,
        loss="fused" if target.device == "cuda" else "selected",
    )


def _pin(recipe: Recipe, varied: dict[str, Any], pinned: dict[str, Any]) -> Recipe:
    """Raises: FileFormatError for a combination that no Recipe can have."""
    values = {**recipe.to_dict(), **varied, **pinned}
    if values["base_dtype"] == "float32" and "autocast" not in pinned:
        values["autocast"] = False
    if values["quant_type"] == "int8" and "double_quant" not in pinned:
        values["double_quant"] = False
    return Recipe.from_dict(values, where="--set")


def saving_of(recipe: Recipe) -> int:
    """How much it saves, 0 for nothing; pins may have made it another than the one that was varied."""
    if not recipe.gradient_checkpointing:
        return 0
    return (1 if recipe.checkpoint_every > 1 else 2) + 2 * recipe.offload_checkpoints


def _micro_batches(rows: int) -> list[int]:
    """rows, rows/2, rows/4, ... as long as they are whole, and 1; the smallest first."""
    found = {1}
    while rows not in found:
        found.add(rows)
        if rows % 2 == 0:
            rows //= 2
    return sorted(found)


def _value(text: str) -> Any:
    """Read as TOML, else as text. Python's True and False are truth values too."""
    from autoft.schema import parse_toml

    if text in ("True", "False"):
        text = text.lower()
    try:
        return parse_toml(f"value = {text}", where="--set")["value"]
    except FileFormatError:
        return text
