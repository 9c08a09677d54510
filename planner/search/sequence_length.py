"""How long may a row be? The model's own context, or what RoPE scaling stretches it to."""

from __future__ import annotations

from typing import Any

from autoft.errors import InputError, ModelError
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.model.rope import MOST_FACTOR, refuse_scaling
from autoft.trainer.recipe import RopeScaling

SOURCES: dict[RopeScaling, str] = {"yarn": "arXiv:2309.00071", "linear": "arXiv:2306.15595"}


def longest_row(shape: ModelShape, scaling: RopeScaling | None) -> int:
    """Tokens, at most."""
    return shape.max_position * (MOST_FACTOR[scaling] if scaling is not None else 1)


def check_length(
    seq_len: int, estimator: Estimator, scaling: RopeScaling | None, *, word: str, error: type[InputError]
) -> None:
    """Refuse what is longer than the model, or its scaling, goes, and a scaling of what the model takes as it is.

    word: what the user calls seq_len. Raises: `error`; ModelError where the model's RoPE cannot be scaled.
    """
    shape = estimator.shape
    if scaling is not None:
        refuse_scaling(estimator.config, scaling)
    if scaling is not None and seq_len <= shape.max_position:
        raise error(
            f"rope_scaling={scaling}: {word} is within the {shape.max_position} tokens that {shape.name} was made for",
            fix=f"leave rope_scaling out, or a length of more than {shape.max_position}",
        )
    most = longest_row(shape, scaling)
    if seq_len <= most:
        return
    if scaling is not None:
        raise error(
            f"{word} is more than {MOST_FACTOR[scaling]} times what {shape.name} was made for ({shape.max_position} "
            f"tokens), further than {scaling} was shown to go ({SOURCES[scaling]})",
            fix=f"--seq-len {most} or less",
        )
    stretch = ", or stretch it with rope_scaling=yarn" if _can_stretch(estimator.config) else ""
    raise error(
        f"{word} is more than {shape.name} was made for ({shape.max_position} tokens)",
        fix=f"--seq-len {shape.max_position} or less{stretch}",
    )


def length_notes(seq_len: int, estimator: Estimator, scaling: RopeScaling | None, *, cut: bool) -> tuple[str, ...]:
    """What to know of a scaling, or of the one that would help. cut: rows were left out at the model's own context."""
    native = estimator.shape.max_position
    if scaling is not None:
        return (
            f"{scaling} stretches the model's {native} tokens to {seq_len}, {seq_len / native:.3g} times "
            f"({SOURCES[scaling]}): short rows, too, are seen through it, and whoever loads the result must set it "
            "(its README.md says how)",
        )
    if cut and _can_stretch(estimator.config):
        return (f"{native} tokens are the model's own context; --set rope_scaling=yarn stretches it for longer rows",)
    return ()


def _can_stretch(config: Any) -> bool:
    try:
        refuse_scaling(config, "yarn")
    except ModelError:
        return False
    return True
