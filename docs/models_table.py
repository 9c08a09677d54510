"""Write docs/models.md: what autoft says to every language model class of the installed transformers.

python docs/models_table.py               writes it
python docs/models_table.py TYPE [TYPE]   prints the rows of these model types

Each configuration class is taken with its own defaults, few layers, and its step is rehearsed in 16 bits and in 4.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from autoft.errors import AutoftError
from autoft.planner.depth import shortened
from autoft.planner.device import Device
from autoft.planner.ghost import rehearse
from autoft.planner.loop import OURS
from autoft.trainer import environment
from autoft.trainer.build import base_of, towers
from autoft.trainer.recipe import Recipe

PAGE = Path(__file__).parent / "models.md"
LAYERS = 4
ADA = Device((8, 9))
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "base_dtype": "bfloat16"},
    "qlora": {"method": "qlora", "quant_type": "nf4", "base_dtype": "bfloat16"},
}
CUT = 160  # characters of a reason


def model_types() -> list[str]:
    """Every model type whose class speaks: causal ones, and those with towers for pictures and sounds."""
    from transformers.models.auto import modeling_auto as auto

    return sorted({*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES})


def row(model_type: str) -> tuple[str, str, str]:
    """(class, "trains" or "refused" or "no default", what is said). Raises: whatever is no error of ours: a bug."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(model_type)
    except Exception as error:  # noqa: BLE001 - transformers' classes raise of many kinds
        return "", "no default", _line(error)
    try:
        attention, base = base_of(_few_layers(config))
    except AutoftError as error:
        # transformers' own classes, some of whose defaults contradict each other
        broken = error.__cause__ is not None and not isinstance(error.__cause__, ImportError)
        return "", "no default" if broken else "refused", _line(error)
    name = type(base).__name__
    refused = {}
    for method, settings in METHODS.items():
        for checkpointing in (True, False):  # some code does not checkpoint
            recipe = Recipe(
                **settings,
                attention=attention,
                micro_batch=1,
                seq_len=64,
                rank=8,
                gradient_checkpointing=checkpointing,
            )
            try:
                rehearse(recipe, _few_layers(config), ADA, depth=None, loop=replace(OURS, evaluates=False))
                refused.pop(method, None)
                break
            except AutoftError as error:
                refused[method] = _line(error)
    if len(refused) == len(METHODS):
        return name, "refused", refused["lora"]
    notes = [f"{method}: {reason}" for method, reason in refused.items()]
    if towers(base):
        notes.append("text alone: its other parts stay frozen")
    return name, "trains", "; ".join(notes)


def _few_layers(config: Any) -> Any:
    try:
        return shortened(config, min(LAYERS, config.get_text_config().num_hidden_layers))
    except (AttributeError, TypeError, ValueError):  # counts its layers in a way of its own
        return config


def _line(error: Exception) -> str:
    line = " ".join(str(getattr(error, "what", error)).split()).replace("|", "\\|")
    return line if len(line) <= CUT else line[:CUT].rsplit(" ", 1)[0] + " ..."


def page(rows: dict[str, tuple[str, str, str]]) -> str:
    import transformers

    counts = Counter(outcome for _, outcome, _ in rows.values())
    lines = [
        "# Models",
        "",
        "Written by `python docs/models_table.py`. Every language model class of transformers "
        f"{transformers.__version__}, with the defaults of its configuration class and at most {LAYERS} layers: one "
        "step is rehearsed with LoRA in 16 bits and with QLoRA in 4.",
        "",
        f"{counts['trains']} train, {counts['refused']} are refused, and of {counts['no default']} the class's own "
        "defaults build no model, so a real `config.json` decides.",
        "",
        "| model type | class | | said |",
        "|-|-|-|-|",
        *(f"| {kind} | {name} | {outcome} | {said} |" for kind, (name, outcome, said) in rows.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    environment.prepare()
    warnings.simplefilter("ignore")
    asked = sys.argv[1:]
    rows = {}
    for kind in asked or model_types():
        rows[kind] = row(kind)
        print(kind, *rows[kind], sep="  ", file=sys.stderr, flush=True)
    if not asked:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
