"""Write docs/models.md: what autoft says to every language model class of the installed transformers.

python docs/models_table.py                       writes it (ten minutes); exits with 1 where autoft crashes
python docs/models_table.py TYPE [TYPE]           prints the rows of these model types
python docs/models_table.py --check TYPE [TYPE]   exits with 1 where the page has other rows

Each configuration class is taken with its own defaults, few layers, and its step is rehearsed in 16 bits and in 4.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

from autoft.errors import AutoftError
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.layers import shortened
from autoft.planner.rehearsal.loop import OURS
from autoft.planner.rehearsal.rehearse import rehearse
from autoft.planner.rehearsal.step import real_masks
from autoft.trainer.model.build import base_of, towers
from autoft.trainer.recipe import Attention, Recipe
from autoft.trainer.runtime import environment

PAGE = Path(__file__).parent / "models.md"
LAYERS = 4
ADA = Device((8, 9))
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "base_dtype": "bfloat16"},
    "qlora": {"method": "qlora", "quant_type": "nf4", "base_dtype": "bfloat16"},
}
CHANGES: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": False},  # some code does not checkpoint
    {"gradient_checkpointing": False, "loss": "logits"},  # some has no head apart
)
TOKENS = 64
CUT, CUT_MARK = 160, " ..."  # characters of a reason


class Row(NamedTuple):
    """name: of the class. outcome: trains, refused, no default or crash. said: why, or what to know."""

    name: str
    outcome: str
    said: str

    def line(self, model_type: str) -> str:
        return f"| {model_type} | {self.name} | {self.outcome} | {self.said} |"


def model_types() -> list[str]:
    """Every model type whose class speaks: causal ones, and those with towers for pictures and sounds."""
    from transformers.models.auto import modeling_auto as auto

    return sorted({*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES})


def row(model_type: str) -> Row:
    """What autoft says to the defaults of a model type."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(model_type)
    except Exception as error:  # noqa: BLE001 - transformers' classes raise of many kinds
        return Row("", "no default", _line(error))
    try:
        return _trained(_few_layers(config))
    except Exception as error:  # noqa: BLE001 - a bug of autoft's, which the page shows
        return Row("", "crash", f"{type(error).__name__}: {_line(error)}")


def _trained(config: Any) -> Row:
    try:
        attention, base = base_of(config)
    except AutoftError as error:
        # transformers' own classes, some of whose defaults contradict each other
        broken = error.__cause__ is not None and not isinstance(error.__cause__, ImportError)
        return Row("", "no default" if broken else "refused", _line(error))
    name = type(base).__name__
    ways = {method: _way(config, settings, attention) for method, settings in METHODS.items()}
    reasons = {method: reason for method, (reason, _) in ways.items()}
    refused = {method: reason for method, reason in reasons.items() if reason is not None}
    if len(refused) == len(METHODS):
        own = _own_fault(base)
        if own is not None and own in refused["lora"] and "meta" not in own:  # a rehearsal has no values, a run has
            return Row(name, "no default", f"transformers' own forward fails: {own}")
        return Row(name, "refused", _cut(refused["lora"]))
    notes = [f"{method}: {_cut(reason)}" for method, reason in refused.items()]
    if any(way is CHANGES[-1] for _, way in ways.values()):
        notes.append("with loss=logits")
    if towers(base):
        notes.append("text alone: its other parts stay frozen")
    return Row(name, "trains", "; ".join(notes))


def _way(config: Any, settings: dict[str, Any], attention: Attention) -> tuple[str | None, dict[str, Any] | None]:
    """(why no step can be rehearsed, None where one can; which of CHANGES it then has)."""
    reason = ""
    for changes in CHANGES:
        recipe = Recipe(**settings, **changes, attention=attention, micro_batch=1, seq_len=TOKENS, rank=8)
        try:
            rehearse(recipe, config, ADA, depth=None, loop=replace(OURS, evaluates=False))
            return None, changes
        except AutoftError as error:
            reason = _words(error)
    return reason, None


def _own_fault(base: Any) -> str | None:
    """What transformers' own forward of these tokens raises, without autoft; None where it runs."""
    import torch

    try:
        with torch.device("meta"), real_masks(packed=False):
            base(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    except Exception as error:  # noqa: BLE001 - whatever the model's code raises
        return _cut(_words(error).replace(CUT_MARK, ""))
    return None


def _few_layers(config: Any) -> Any:
    try:
        return shortened(config, min(LAYERS, config.get_text_config().num_hidden_layers))
    except (AttributeError, TypeError, ValueError, NotImplementedError):  # counts its layers in a way of its own
        return config


def _words(error: Exception) -> str:
    return " ".join(str(getattr(error, "what", error)).split()).replace("|", "\\|")


def _line(error: Exception) -> str:
    return _cut(_words(error))


def _cut(line: str) -> str:
    return line if len(line) <= CUT else line[:CUT].rsplit(" ", 1)[0] + CUT_MARK


def page(rows: dict[str, Row]) -> str:
    """The whole text of the page."""
    import transformers

    counts = Counter(row.outcome for row in rows.values())
    crashes = f" {counts['crash']} crash: these are bugs." if counts["crash"] else ""
    lines = [
        "# Models",
        "",
        "Made by `python docs/models_table.py`: do not edit. Every language model class of transformers "
        f"{transformers.__version__}, with the defaults of its configuration class and at most {LAYERS} layers: a step "
        f"on {TOKENS} tokens is rehearsed with LoRA in 16 bits and with QLoRA in 4.",
        "",
        f"{counts['trains']} train, {counts['refused']} are refused, and of {counts['no default']} the class's own "
        f"defaults make no model that runs: there a model's own `config.json` decides.{crashes}",
        "",
        "| model type | class | | said |",
        "|-|-|-|-|",
        *(row.line(kind) for kind, row in rows.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """The exit status."""
    import transformers

    environment.prepare()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kinds = [word for word in sys.argv[1:] if word != "--check"]
    rows = {}
    for kind in kinds or model_types():
        rows[kind] = row(kind)
        print(rows[kind].line(kind), file=sys.stderr, flush=True)
    if "--check" in sys.argv:
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        return int(any(row.line(kind) not in lines for kind, row in rows.items()))
    if not kinds:
        PAGE.write_text(page(rows), encoding="utf-8")
    return int(any(row.outcome == "crash" for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
