"""The model card of an upload: the folder's README.md, with what the hub reads at its head.

Source: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from autoft.errors import ModelError
from autoft.profiles.model_catalogue import find_model
from autoft.trainer.data.files import TABLES, TEXTS, kind
from autoft.trainer.data.hub import HUB_ID
from autoft.trainer.report.model_card import model_card
from autoft.trainer.report.wording import SCORES
from autoft.trainer.result import RunResult
from autoft.trainer.storage.places import public_name

TASK = "text-generation"


def card_of_run(text: str | None, result: RunResult, name: str) -> str:
    """The card with base, licence, dataset and scores; what its head says already stays.

    text: of the run's README.md, None where it is gone. name: of the repository.
    Raises: ModelError when its head is not valid YAML.
    """
    text = text or model_card(result, name, base=_hub_id(result.base), licence=None)
    data = public_name(result.job.data or "")
    dataset = _dataset_id(data)
    fields = {
        "base_model": _hub_id(result.base),
        "license": _licence(result.base),
        "datasets": [dataset] if dataset else None,
        "model_name": name,
        "eval_results": _scores(result, dataset, Path(data).name),
    }
    return _with_head(text, fields)


def card_of_export(text: str | None, record: Mapping[str, Any], files: Collection[str], name: str) -> str:
    """The card of a merged, quantized or converted model. record: of its autoft_export.json.

    text, name: as `card_of_run` has them. Raises: ModelError as `card_of_run`.
    """
    base = str(record.get("base", ""))
    form, library = _form(files)
    body = f"# {name}\n\n{form} `{base}`, trained and exported by autoft {record['autoft_version']}.\n"
    fields = {
        "base_model": _hub_id(base),
        "library_name": library,
        "license": _licence(base),
        "pipeline_tag": TASK,
        "tags": ["autoft"],
    }
    return _with_head(text or body, fields)


def _with_head(text: str, fields: Mapping[str, Any]) -> str:
    import yaml
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"README.md: its head is not what the hub reads: {reason}", fix="correct its YAML") from None
    for field, value in fields.items():
        if value and not getattr(card.data, field, None):
            setattr(card.data, field, value)
    return str(card)


def _scores(result: RunResult, dataset: str | None, data: str) -> list[Any]:
    """Each score after training, as the hub's EvalResult; shares are in parts of 1."""
    from huggingface_hub import EvalResult

    values = {score: getattr(result.after, score.name) for score in SCORES}
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset or data or "unknown",
            dataset_name=f"{result.after.rows} held-out rows of {dataset or data}",
            metric_type=score.name,
            metric_name=score.label,
            metric_value=value,
        )
        for score, value in values.items()
        if value is not None
    ]


def _form(files: Collection[str]) -> tuple[str, str]:
    """What the files are, in front of the base's name, and the library that loads them."""
    if any(name.endswith(".gguf") for name in files):
        return "A GGUF file of a fine-tuned", "gguf"
    if "adapter_config.json" in files:
        return "An adapter for", "peft"
    return "The merged weights of a fine-tuned", "transformers"


def _hub_id(base: str) -> str | None:
    """The base where it has a name on the hub; a folder of this machine has none."""
    return base if HUB_ID.fullmatch(base) else None


def _licence(base: str) -> str | None:
    profile = find_model(base) if _hub_id(base) else None
    return None if profile is None else profile.licence


def _dataset_id(data: str) -> str | None:
    """The dataset's id on the hub, None of files."""
    match = HUB_ID.fullmatch(data)
    return None if match is None or kind(data) in (*TABLES, *TEXTS) else match["id"]
