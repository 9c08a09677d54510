"""Adapters of one base scored beside each other, in a process of its own that loads the base once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoft.errors import AutoftError, ModelError
from autoft.schema import Record
from autoft.trainer.data.load import load_rows
from autoft.trainer.data.tokens import tokenize
from autoft.trainer.evaluation.open_adapter import AdapterFolder
from autoft.trainer.export.exporting import dtype_for
from autoft.trainer.export.reload import run_module
from autoft.trainer.export.scores import Quality, quality_of
from autoft.trainer.export.source import Source, open_source
from autoft.trainer.export.texts import MOST_ROWS, Texts, chosen, texts_of
from autoft.trainer.sources.resolve import Say
from autoft.trainer.storage.places import public_name

BASE, SUM = "base", "combined"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(Record):
    """How good base, one of the parts, or the sum of them is on texts. texts: whose they are, in words."""

    adapter: str
    texts: str
    scored_tokens: int
    quality: Quality


def score_adapters(
    adapters: Sequence[AdapterFolder], combined: AdapterFolder, weights: Path, *, data: str | None, say: Say
) -> tuple[tuple[Score, ...], list[str]]:
    """Scores of base, adapters and their sum on each text, and what the user should know.

    Args:
        combined: the sum, as it was written.
        weights: the folder of the base.
        data: rows to score on; None takes the rows that the adapters' runs held out, else bundled prompts.
        say: told, in a line, what takes long.

    Raises: AutoftError where the sum does not load, or gives log-probs that are not finite; DataError for `data`.
    """
    source = open_source(combined.folder, base=str(weights))
    try:
        dtype = dtype_for(source)
    except ModelError as error:
        return (), [f"not scored, and not loaded on the base: {error.what}"]
    texts, notes = _texts(adapters, source, weights, data)
    folders = [str(adapter.folder.absolute()) for adapter in (*adapters, combined)]
    say("loading the sum in a process of its own, and scoring it beside its parts")
    spec = {
        "folder": str(weights),
        "dtype": dtype,
        "adapters": folders,
        "texts": {name: {"rows": each.rows, "scored": each.scored} for name, each in texts.items()},
    }
    answer = run_module("autoft.trainer.export.fresh_adapters", spec)
    logprobs = dict(zip((BASE, *labels_of(adapters), SUM), answer["logprobs"], strict=True))
    scores = tuple(
        Score(adapter=label, texts=name, scored_tokens=each.num_scored, quality=quality_of(logprobs[label][name]))
        for name, each in texts.items()
        for label in logprobs
    )
    for score in scores:
        if score.adapter == SUM and not math.isfinite(score.quality.mean_logprob):
            raise AutoftError("the sum gives log-probs that are not finite", fix="give other adapters or --weights")
    return scores, notes


def labels_of(adapters: Sequence[AdapterFolder]) -> list[str]:
    """The names of the adapters' folders, with a number where one is taken already."""
    labels: list[str] = []
    for adapter in adapters:
        name = label = public_name(str(adapter.folder.absolute()))
        number = 1
        while label in (BASE, SUM, *labels):
            number += 1
            label = f"{name} ({number})"
        labels.append(label)
    return labels


def _texts(
    adapters: Sequence[AdapterFolder], source: Source, weights: Path, data: str | None
) -> tuple[dict[str, Texts], list[str]]:
    """Texts by whose they are, and what to know of them."""
    if data is not None:
        rows = load_rows(data, most=MOST_ROWS, mapping=None)
        held = tokenize(rows, source.tokenizer, max_tokens=source.recipe.seq_len, stops=list(source.stops))
        return {public_name(data): chosen(held.examples, "rows", None)}, []
    texts, notes = {}, []
    for name, adapter in zip(labels_of(adapters), adapters, strict=True):
        if adapter.result is None:
            continue
        own = texts_of(open_source(adapter.folder, base=str(weights)))
        if own.note is None:
            texts[f"held-out rows of {name}"] = own
        else:
            notes.append(f"{name}: {own.note}")
    if texts:
        return texts, notes
    return {"bundled prompts": texts_of(source)}, notes
