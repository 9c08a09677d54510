"""The Workload: what the user's data asks of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from autoft.schema import Record
from autoft.trainer.data.prepare import Prepared
from autoft.trainer.data.thinking import switched
from autoft.trainer.data.written import SPLICED, is_other_end


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload(Record):
    """Training rows under the model's tokenizer and chat template; lengths in tokens.

    trained_share: part of all tokens that the loss sees, the rest being prompt. longest_answer: of the held-out rows.
    template_value: the variable that the chat template is given for this data, NAME=VALUE. thought_end: what closes the
    thought that it would open. asked_otherwise: answers whose beginning is the prompt's, not the template's.
    ended_otherwise: answers that end with a stop token which the template does not write.
    """

    rows: int
    heldout_rows: int
    tokens: int
    mean_tokens: float
    p95_tokens: int
    longest_tokens: int
    trained_share: float
    longest_answer: int
    template_supplied: bool = False
    template_value: str | None = None
    thought_end: str | None = None
    asked_otherwise: int = 0
    ended_otherwise: int = 0


def measure(prepared: Prepared) -> Workload:
    """The figures of tokenized data."""
    lengths = sorted(len(example.input_ids) for example in prepared.train.examples)
    tokens = sum(lengths)
    thinking, facts = switched(prepared.tokenizer), prepared.train.facts
    return Workload(
        rows=len(lengths),
        heldout_rows=len(prepared.splits.heldout),
        tokens=tokens,
        mean_tokens=tokens / len(lengths),
        p95_tokens=lengths[int(0.95 * (len(lengths) - 1))],
        longest_tokens=prepared.longest_tokens,
        trained_share=sum(example.trained_tokens for example in prepared.train.examples) / tokens,
        longest_answer=max((example.trained_tokens for example in prepared.heldout), default=0),
        template_supplied=prepared.template_supplied,
        template_value=thinking.value,
        thought_end=thinking.end,
        asked_otherwise=sum(count for fact, (count, _) in facts.items() if fact == SPLICED),
        ended_otherwise=sum(count for fact, (count, _) in facts.items() if is_other_end(fact)),
    )
