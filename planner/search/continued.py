"""The adapter that a plan continues: the settings that it fixes, and whether it fits the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoft.errors import OptionError
from autoft.planner.facts import Reason
from autoft.planner.request import Request
from autoft.trainer.adapters import kind_of
from autoft.trainer.evaluation.open_adapter import (
    AdapterFolder,
    check_base,
    check_shapes,
    open_adapter,
    refuse_to_continue,
    same,
    shown,
)
from autoft.trainer.model.build import add_adapter, build_whole_base
from autoft.trainer.sources.resolve import fetched, resolve


def adapter_of(request: Request, pins: dict[str, Any]) -> AdapterFolder | None:
    """The adapter that the request continues, None where a new one begins. pins: fields of the Recipe that are set.

    Raises: ModelError for an adapter that cannot be continued, or of another base; OptionError for a pin that differs.
    """
    if request.from_adapter is None:
        return None
    adapter = open_adapter(Path(request.from_adapter).expanduser())
    refuse_to_continue(adapter)
    option = f"--from-adapter {request.from_adapter}"
    if pins.get("method") == "full":
        raise OptionError(f"{option} and method=full exclude each other", fix="remove one of them")
    given = {**pins, **({} if request.seq_len is None else {"seq_len": request.seq_len})}
    for name, value in adapter.settings.items():
        if name in given and not same(given[name], value):
            raise OptionError(
                f"--set {name}={shown(given[name])} and {option} differ: the adapter has {shown(value)}",
                fix="remove one of them",
            )
    rank = adapter.settings.get("rank", request.min_rank)
    if request.min_rank is not None and rank < request.min_rank:
        raise OptionError(
            f"--min-rank {request.min_rank} and {option} exclude each other: its rank is {rank}",
            fix="remove one of them",
        )
    ref = resolve(request.model)
    check_base(adapter, ref, fetched(ref))
    return adapter


def check_fits(adapter: AdapterFolder, config: Any) -> None:
    """Whether the weights of the adapter are those that the model of `config` takes. Raises: ModelError."""
    base = build_whole_base(adapter.recipe, config, None, "meta", for_loss=False)
    check_shapes(adapter, add_adapter(base, adapter.recipe))


def reason(adapter: AdapterFolder, name: str) -> Reason:
    """What the plan says of it. name: of its folder."""
    kind, recipe = kind_of(adapter.recipe), adapter.recipe
    size = f", {kind.size(recipe)}" if kind.size(recipe) else ""
    text = f"continues {name}: {kind.title(recipe)}{size}, with its weights and layers"
    quant_type = None if adapter.result is None else adapter.result.job.recipe.quant_type
    if quant_type is not None:
        text += f"; so far trained over the base in {quant_type}, whose errors it may make up for"
    return Reason(key="from_adapter", text=text)
