"""The loop around a step: what it does besides the recipe, and the phases that a run goes through in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autoft.planner.depth import Events

OutputUntil = Literal["loss", "step", "next_forward"]


@dataclass(frozen=True, slots=True)
class Loop:
    """How a step is run around the recipe.

    clip: gradients are clipped by their norm. device_map: weights that stay in 16 bits too are loaded right onto the
    device; loading then begins with one block as large as the model (transformers' caching_allocator_warmup).
    kbit_empties_cache: k-bit preparation gives back what it left free (PEFT from 0.20 on). empty_cache: what loading
    leaves free is given back. expandable_segments: of PyTorch's allocator.
    mask: the batch carries an attention mask and labels of its own. output_until: how long the model's output, logits
    and all, lives: "loss" is computed, the optimizer's "step" is done, or the "next_forward" has given another, as
    `out = model(...); out.loss.backward()` in a plain loop makes it.
    """

    clip: bool = True
    device_map: bool = True
    kbit_empties_cache: bool = False
    empty_cache: bool = True
    expandable_segments: bool = True
    mask: bool = True
    output_until: OutputUntil = "loss"


OURS = Loop()
# Hugging Face's own loop, as its documentation writes it
PLAIN = Loop(
    clip=False,
    device_map=False,
    kbit_empties_cache=True,
    empty_cache=False,
    expandable_segments=False,
    mask=False,
    output_until="step",
)


@dataclass(frozen=True, slots=True)
class Phase:
    """Events of one phase. empty_cache: the allocator gives back what is free when it ends.

    marks: (first event, section, layer) of each section that begins in it.
    """

    name: str
    events: Events
    empty_cache: bool = False
    marks: list[tuple[int, str, int | None]] = field(default_factory=list)
