"""What data says of its answers: good or bad, to be trained or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOOD_WORDS = frozenset(("true", "1", "+1", "yes", "y", "good", "desirable", "chosen", "preferred", "accepted",
                        "accept", "correct", "thumbs_up", "thumbs up", "thumbsup", "up", "like", "liked", "keep",
                        "👍", "win"))  # fmt: skip
BAD_WORDS = frozenset(("false", "0", "-1", "no", "n", "bad", "undesirable", "rejected", "reject", "dispreferred",
                       "incorrect", "wrong", "thumbs_down", "thumbs down", "thumbsdown", "down", "dislike",
                       "disliked", "discard", "👎", "lose"))  # fmt: skip
# Columns that mark an answer, by their lower-case names; what these mean is clear from the name alone
CLEAR = (
    "kto_tag", "kto_label", "kto", "desirable", "is_desirable", "is_good", "is_good_response", "is_accepted",
    "accepted", "thumbs_up", "thumbs", "is_preferred", "is_chosen", "is_correct", "correct", "is_helpful",
)  # fmt: skip
OPPOSITE = ("undesirable", "is_undesirable", "is_bad", "thumbs_down", "is_rejected")
# Others may as well be the class of a text: only their words count, and of numbers 0 and 1
UNCLEAR = ("label", "tag", "feedback", "rating", "vote", "quality", "preference", "verdict", "judgement", "judgment")
# Of these neither numbers nor yes and no count
WORDED = ("type", "status")
MARKS = (*CLEAR, *OPPOSITE, *UNCLEAR, *WORDED)

TRAINED = ("train", "training", "trainable", "is_trainable", "trained", "weight", "loss", "loss_weight",
           "compute_loss", "loss_mask", "learn", "train_on", "train_on_turn", "is_train")  # fmt: skip
MASKED = ("masked", "mask", "ignore", "ignored", "skip", "no_train", "exclude", "no_loss", "mask_loss")
# Of a whole row; its weight may as well be one in a sum
ROW_FLAGS = ("train", "trainable", "is_trainable", "weight", "skip", "ignore", "exclude", "masked", "no_train")
FLAGS = frozenset((*TRAINED, *MASKED))
# "mask": 1 is a masked turn for some, a turn to train for others
TWO_MEANINGS = ("mask",)


def is_good(name: str, value: Any) -> bool | None:
    """Whether a mark of this name and value says that an answer is good; None where it says neither."""
    lower = name.lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    word = str(value).strip().lower()
    good = True if word in GOOD_WORDS else False if word in BAD_WORDS else None
    if lower in ("rating", "quality") and not isinstance(value, str | bool):
        return None  # a scale
    if lower in WORDED and len(word) <= len("false"):
        return good if word in ("good", "bad") else None
    return None if good is None else good != (lower in OPPOSITE)


def to_train(turn: Mapping[str, Any]) -> tuple[bool | None, str | None]:
    """(whether a turn's flags say that it is to be trained, None without flags; a flag that says neither, if any)."""
    verdict: bool | None = None
    for name in turn.keys() & FLAGS:
        value = turn[name]
        if value is None:
            continue
        truth = _truth(value)
        if truth is None or (name in TWO_MEANINGS and not isinstance(value, bool)):
            return None, name
        trained = truth != (name in MASKED)
        verdict = trained if verdict is None else verdict and trained
    return verdict, None


def _truth(value: Any) -> bool | None:
    """Of true and false, 1 and 0, and such words."""
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    word = str(value).strip().lower()
    return True if word in ("true", "1", "yes") else False if word in ("false", "0", "no") else None
