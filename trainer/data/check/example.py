"""One row as the model sees it, in pieces that are trained and pieces that are not."""

from __future__ import annotations

import itertools

from autoft.trainer.data.check.lengths import Meter
from autoft.trainer.data.check.report import Example, Segment
from autoft.trainer.data.shape import Row, said_in


def rendered(row: Row, meter: Meter | None) -> Example:
    """Under the model's chat template where there is a model, else turn by turn.

    Raises: DataError as `tokenize` does.
    """
    if meter is None:
        return Example(where=row.where, template="none", segments=_turns(row))
    from autoft.trainer.data.tokens import tokenize
    from autoft.trainer.objectives.loss import IGNORED

    (example,) = tokenize([row], meter.tokenizer, stops=meter.stops).examples
    pairs = zip(example.input_ids, example.labels, strict=True)
    segments = tuple(
        Segment(text=meter.tokenizer.decode([label if trained else token for token, label in run]), trained=trained)
        for trained, run in itertools.groupby(pairs, key=lambda pair: bool(pair[1] != IGNORED))
    )
    return Example(where=row.where, template=meter.template or "model", segments=segments)


def _turns(row: Row) -> tuple[Segment, ...]:
    if row.text is not None:
        return (Segment(text=row.text, trained=True),)
    pieces = []
    for number, message in enumerate(row.messages):
        start = "" if number == 0 else "\n"
        pieces.append(Segment(text=f"{start}{message['role']}: ", trained=False))
        trained = message["role"] == "assistant" and message.get("train", True)
        pieces.append(Segment(text=said_in(message), trained=trained))
    return tuple(pieces)
