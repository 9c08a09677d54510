"""Which recipes are worth an estimate? Every legal combination of the few choices that matter, pinned ones fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from autoft.errors import FileFormatError
from autoft.planner.estimator.target import Target
from autoft.trainer.adapters import kind_of
from autoft.trainer.job import Device
from autoft.trainer.objectives import objective_of
from autoft.trainer.optimizers import spec_of
from autoft.trainer.recipe import Attention, Dtype, Optimizer, Recipe

# How the base is held: a method with its quantization. Full fine-tuning is looked at only where it is asked for.
BASES: tuple[dict[str, Any], ...] = (
    {"method": "lora"},
    {"method": "qlora", "quant_type": "nf4", "double_quant": True},
    {"method": "qlora", "quant_type": "nf4", "double_quant": True, "experts_4bit": True},
    {"method": "qlora", "quant_type": "int8"},
    {"method": "full"},
    {"method": "full", "optimizer": "adamw_8bit"},
    {"method": "full", "optimizer": "paged_adamw_8bit"},
    {"method": "full", "optimizer": "adafactor"},
)
# What is done to keep less of the forward, each saving more and taking longer than the one before
SAVINGS: tuple[dict[str, Any], ...] = (
    {},
    {"gradient_checkpointing": True, "checkpoint_every": 2},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "offload_checkpoints": True},
)
# Where nothing fits in full: the frozen layers wait in the host's memory
STREAMED: tuple[dict[str, Any], ...] = (SAVINGS[2], SAVINGS[3])
SHORT_DTYPES: dict[Dtype, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


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
    streamed_layers: int = 0,
    pinned: dict[str, Any],
) -> list[Family]:
    """Recipes for `target`, each once: base x saving x micro-batch, the rest by the device's ability.

    Args:
        rows_per_step: sequences in an optimizer step; the micro-batch divides it.
        attention: what the model takes.
        experts: whether the model has experts that can be held in 4 bits.
        streamed_layers: of all recipes; those are left out whose layers cannot wait on the host.
        pinned: fields of the Recipe that the user has set; a combination they contradict is left out.

    Raises: FileFormatError when a pinned value is wrong whatever it is combined with.
    """
    made: list[Family] = []
    seen: set[Recipe] = set()
    problem: FileFormatError | None = None
    streamed = {"streamed_layers": streamed_layers} if streamed_layers else {}
    savings = STREAMED if streamed_layers else SAVINGS
    for base, saving in ((base, saving) for base in _bases(pinned) for saving in savings):
        if target.device == "cpu" and "offload_checkpoints" in saving:
            continue  # they are in the host's memory as it is
        if "experts_4bit" in base and not experts:
            continue
        recipes: list[Recipe] = []
        for micro_batch in _micro_batches(rows_per_step):
            varied = {**base, **saving, **streamed, "micro_batch": micro_batch}
            try:
                recipe = _pin(_recipe(target, seq_len, attention), varied, pinned)
            except FileFormatError as error:
                problem = problem or error
                continue
            if recipe not in seen:
                seen.add(recipe)
                recipes.append(recipe)
        if recipes:
            made.append(Family(BASES.index(base), saving_of(recipes[0]), tuple(recipes)))
    if not made:
        assert problem is not None
        raise problem
    return sorted(made, key=lambda family: (family.base, family.saving))


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
    optimizer = spec_of(recipe.optimizer).lighter
    return None if optimizer is None else replace(recipe, optimizer=cast(Optimizer, optimizer))


def describe(recipe: Recipe, *, micro_batch: bool = True) -> str:
    """QLoRA (NF4), micro-batch 4, gradient checkpointing, 8-bit optimizer; or all but the micro-batch."""
    parts = [describe_base(recipe)]
    if micro_batch:
        parts.append(f"micro-batch {recipe.micro_batch}")
    if recipe.gradient_checkpointing:
        every = "" if recipe.checkpoint_every == 1 else f" every {_ordinal(recipe.checkpoint_every)} layer"
        parts.append(f"gradient checkpointing{every}{' in host RAM' if recipe.offload_checkpoints else ''}")
    if recipe.streamed_layers:
        parts.append(f"{recipe.streamed_layers} layers streamed")
    label = spec_of(recipe.optimizer).label
    if label and recipe.method != "full":  # whose base tells
        parts.append(label)
    if minimised := objective_of(recipe).label:
        parts.append(minimised)
    return ", ".join(parts)


def _ordinal(number: int) -> str:
    """2nd, 3rd, 4th."""
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"


def describe_base(recipe: Recipe) -> str:
    """LoRA (bf16 base), QLoRA (NF4), full fine-tuning (fp32, adamw_8bit)."""
    if recipe.method == "full":
        return f"full fine-tuning ({SHORT_DTYPES[recipe.weights_dtype]}, {recipe.optimizer})"
    base = f"{SHORT_DTYPES[recipe.base_dtype]} base"
    if recipe.quant_type is not None:
        experts = ", 4-bit experts" if recipe.experts_4bit else ""
        base = f"{recipe.quant_type.upper()}{experts}"
    if recipe.adapter == "lora":
        return f"{'LoRA' if recipe.quant_type is None else 'QLoRA'} ({base})"
    return f"{kind_of(recipe).title(recipe)} ({base})"


def base_bits(recipe: Recipe) -> int:
    """Of a weight of the base's linear layers: 4, 8, or 16, which stands for all more."""
    return {None: 16, "int8": 8}.get(recipe.quant_type, 4)


def state_bits(recipe: Recipe) -> int:
    """Of a number in the optimizer's state: 8, or 32 for the weights' own, or 0 where it keeps hardly any."""
    return spec_of(recipe.optimizer).state_bits


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
    saved = (1 if recipe.checkpoint_every > 1 else 2) + 2 * recipe.offload_checkpoints
    return saved + 4 * (recipe.streamed_layers > 0)


def _micro_batches(rows: int) -> list[int]:
    """rows, rows/2, rows/4, ... as long as they are whole, and 1; the smallest first."""
    sizes = {1}
    while rows not in sizes:
        sizes.add(rows)
        if rows % 2 == 0:
            rows //= 2
    return sorted(sizes)
