"""The loop around a step: what it does besides the recipe, and the phases that a run goes through in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from autoft.planner.rehearsal.layers import Events
from autoft.trainer.recipe import Attention

OutputUntil = Literal["loss", "step", "next_forward"]
LoopKind = Literal["plain", "trainer", "trl"]
LogitsForm = Literal["whole", "shifted", "widened"]
Version = tuple[int, ...]


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
    logits_form: what `loss: logits` does with them (older.py). reentrant: checkpointed layers run again inside a
    backward of their own (torch.utils.checkpoint, use_reentrant=True). wide_output: under autocast the model's output
    is copied into float32 (accelerate/utils/operations.py, ConvertOutputsToFp32). half_ends: embeddings and head, which
    k-bit preparation made float32, go back to 16 bits (TRL below 0.20, peft_module_casting_to_bf16). repeats_heads:
    kinds of attention for which grouped keys and values are repeated for all heads first. evaluates: as
    trainer/evaluation/evaluate.py does between steps. layer_kernels: with other packages' kernels of layers
    (planner/tracing/reference_code.py).
    """

    clip: bool = True
    device_map: bool = True
    kbit_empties_cache: bool = False
    empty_cache: bool = True
    expandable_segments: bool = True
    mask: bool = True
    output_until: OutputUntil = "loss"
    logits_form: LogitsForm = "whole"
    reentrant: bool = False
    wide_output: bool = False
    half_ends: bool = False
    repeats_heads: tuple[Attention, ...] = ()
    evaluates: bool = True
    layer_kernels: bool = False


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
    evaluates=False,
)
# Its Trainer: transformers/trainer.py, training_step and compute_loss, whose output ends with the loss
HUNGRIEST: Version = (4, 48)  # of transformers: keeps 16-bit logits, their float32 copy and a shifted copy of that
TRAINER = replace(PLAIN, clip=True, mask=True, output_until="loss", wide_output=True)


def hugging_face_loop(kind: LoopKind, versions: Mapping[str, Version], model_type: str) -> Loop:
    """Hugging Face's own loop of a kind, with the versions of its libraries; those not given are the installed ones.

    A Trainer of an unknown transformers is taken for one that needs most memory. model_type: as configurations name it.
    """
    version = versions.get("transformers", None if kind == "plain" else HUNGRIEST)
    loop = PLAIN if kind == "plain" else TRAINER
    if version is not None:
        # modeling_utils.py, gradient_checkpointing_enable: the default until 5.0; a plain loop names its own
        loop = replace(
            loop,
            logits_form=logits_form(version, model_type),
            reentrant=kind != "plain" and version < (5,),
            repeats_heads=repeats_heads(version, model_type),
        )
    if versions.get("peft", (1,)) < (0, 20):
        loop = replace(loop, kbit_empties_cache=False)
    return replace(loop, half_ends=kind == "trl" and versions.get("trl", (1,)) < (0, 20))


# Models whose own file computed the loss until transformers 4.47; the others called the shared function from 4.46 on
_LATE = frozenset(("bloom", "falcon", "gpt2", "gpt_neox", "granite", "mistral", "opt", "stablelm", "starcoder2"))


def logits_form(transformers: Version, model_type: str) -> LogitsForm:
    """How that version of transformers computes the loss on all logits; loss/loss_utils.py, models/*/modeling_*.py.

    widened: the model's own file widens the logits, then copies all but the last of each row (below 4.46, some models
    below 4.48). shifted: ForCausalLMLoss does, while the 16-bit logits live on (to 4.48). whole: it shifts the labels
    instead (from 4.49 on; 4.48.1, 4.49.0 and 5.23.0 were read).
    """
    if transformers >= (4, 49):
        return "whole"
    return "shifted" if transformers >= ((4, 48) if model_type in _LATE else (4, 46)) else "widened"


# Models whose own FlashAttention2 class repeated the heads until transformers 4.47
_REPEATING = frozenset(("mistral", "mixtral", "phi3", "phimoe", "qwen2", "qwen2_moe", "starcoder2"))


def repeats_heads(transformers: Version, model_type: str) -> tuple[Attention, ...]:
    """Kinds of attention to which that version of transformers gives grouped keys and values repeated for all heads.

    integrations/sdpa_attention.py (4.53.3 does, 4.54.1 leaves it to PyTorch), models/*/modeling_*.py of 4.44 to 4.47.
    """
    flash: tuple[Attention, ...] = ("flash_attention_2",) if model_type in _REPEATING else ()
    return (*(flash if transformers < (4, 48) else ()), *(("sdpa",) if transformers < (4, 54) else ()))


def versions_in(stack: str) -> dict[str, Version]:
    """Versions that a description of a stack names: "transformers 4.45.2, trl 0.11.3" -> {"trl": (0, 11, 3), ...}."""
    pattern = r"\b(transformers|peft|trl)[ =]+(\d+(?:\.\d+)+)"
    return {name: parse_version(number) for name, number in re.findall(pattern, stack)}


def parse_version(text: str) -> Version:
    """(2, 4, 1) of "2.4.1+cu121". Raises: ValueError."""
    match = re.match(r"\d+(\.\d+)*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a version")
    return tuple(int(part) for part in match[0].split("."))


@dataclass(frozen=True, slots=True)
class Phase:
    """Events of one phase. empty_cache: the allocator gives back what is free when it ends.

    marks: (first event, section, layer) of each section that begins in it.
    """

    name: str
    events: Events
    empty_cache: bool = False
    marks: list[tuple[int, str, int | None]] = field(default_factory=list)
