"""What a model makes of texts: log-probs of their scored tokens, and logits; and how far two models are apart.

N scored tokens, S sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.schema import Record
from autoft.trainer.evaluation.metrics import perplexity
from autoft.trainer.export.source import Source, stored_vocabulary
from autoft.trainer.export.texts import Texts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality(Record):
    """How good a model is on the scored tokens of the texts.

    mean_logprob: nats a token; perplexity: e to its negative.
    """

    mean_logprob: float
    perplexity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift(Record):
    """How far the log-probs, in nats, and the logits of two models are apart. Logits: None where not compared."""

    mean_logprob: float
    max_logprob: float
    max_logit: float | None = None


def quality_of(logprobs: Sequence[float]) -> Quality:
    """The figures of log-probs of tokens, in nats."""
    mean = sum(logprobs) / len(logprobs)
    return Quality(mean_logprob=mean, perplexity=perplexity(-mean))


def drift_of(logprobs: Sequence[float], reference: Sequence[float], max_logit: float | None = None) -> Drift:
    """How far log-probs are from those of a reference, token by token."""
    apart = [abs(ours - theirs) for ours, theirs in zip(logprobs, reference, strict=True)]
    apart = [math.inf if math.isnan(each) else each for each in apart]
    return Drift(mean_logprob=sum(apart) / len(apart), max_logprob=max(apart), max_logit=max_logit)


def score(
    model: Any, rows: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]
) -> tuple[list[float], torch.Tensor]:
    """(log-prob of each scored token in nats, logits_NV that predict them in float32), a row at a time."""
    import torch

    logprobs: list[float] = []
    kept: list[torch.Tensor] = []
    with torch.inference_mode():
        for ids, places in zip(rows, scored, strict=True):
            ids_1S = torch.tensor([list(ids)], device=model.device)
            before = torch.tensor(places, device=model.device) - 1
            logits_NV = model(input_ids=ids_1S, use_cache=False).logits[0, before].float().cpu()
            tokens_N1 = ids_1S[0, before + 1].cpu()[:, None]
            logprobs += logits_NV.log_softmax(-1).gather(1, tokens_N1)[:, 0].tolist()
            kept.append(logits_NV)
    return logprobs, torch.cat(kept)


def load_with_adapter(source: Source, dtype: Any) -> Any:
    """Base with adapter, or the whole model, on the CPU in `dtype` whatever it was trained over, ready to compute.

    Raises: ModelError when the adapter does not fit the base.
    """
    from dataclasses import replace

    from autoft.errors import ModelError
    from autoft.trainer.export.source import trained_token_ids
    from autoft.trainer.model.build import build_whole_base
    from autoft.trainer.model.new_rows import add_rows

    recipe = replace(source.recipe, base_dtype=dtype)
    model: Any = build_whole_base(recipe, source.config, source.weights, "cpu", for_loss=False)
    if source.adapter is None:
        return model.eval()
    from peft import PeftModel
    from safetensors import SafetensorError

    rows = stored_vocabulary(source)
    if rows is not None and trained_token_ids(source.adapter):
        add_rows(model, rows)
    elif rows is not None and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        return PeftModel.from_pretrained(model, source.folder).eval()
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{source.folder}: its adapter cannot be put on {source.base}: {reason}", fix="give its own base"
        ) from error


def reference(source: Source, texts: Texts, dtype: Any, logits_file: Path) -> list[float]:
    """Log-probs of base and adapter on the texts; their logits are written to `logits_file` for the fresh process."""
    from safetensors.torch import save_file

    model = load_with_adapter(source, dtype)
    logprobs, logits_NV = score(model, texts.rows, texts.scored)
    save_file({"logits": logits_NV.contiguous()}, logits_file)
    return logprobs
