"""Several adapters of one base made into one, by PEFT's methods, without the base's weights.

PEFT adds adapters up on a model that they are on. Here it is the base's skeleton, whose tensors have shapes and one
stored number each, so that memory holds the adapters alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft import __version__
from autoft.errors import AutoftError, ModelError, OptionError
from autoft.home import sha256, write_text
from autoft.schema import Record
from autoft.trainer.evaluation.open_adapter import (
    AdapterFolder,
    check_base,
    check_shapes,
    model_of,
    open_adapter,
    shown,
)
from autoft.trainer.evaluation.open_run import ADAPTER, load_run_tokenizer
from autoft.trainer.export.score_adapters import Score, labels_of, score_adapters
from autoft.trainer.export.staging import RECORD, check_target, files_of, written_aside
from autoft.trainer.sources.resolve import ModelRef, Say, base_reference, fetched, load_config, load_tokenizer, resolve
from autoft.trainer.storage.ownership import CARD
from autoft.trainer.storage.places import IGNORE, LOCAL, public_name, write_base_place

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# The methods, and what each makes of the adapters
METHODS = {
    "cat": "ranks add up, and the update is exactly the weighted sum",
    "svd": "the weighted sum, as near as the largest rank comes",
    "linear": "factors are added, which is not the sum of the updates",
    "ties": "small values are cut, and signs agreed on (arXiv:2306.01708)",
    "dare_linear": "values are dropped at random, then added (arXiv:2311.03099)",
    "dare_ties": "values are dropped at random, then as ties",
    "magnitude_prune": "small values are cut, then added",
}
COMBINED = frozenset({"lora", "ia3"})  # kinds of which PEFT has add_weighted_adapter
ONE_RANK = frozenset({"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"})
CUTS = ONE_RANK - {"linear"}  # and take a density
SMALL_FILES_BYTES = 2**26  # assumption: tokenizer, card and records beside the weights
SEED = 0  # of what DARE drops


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """How adapters are combined. weights: one each. density: the share of values that is kept, where some are cut."""

    method: str
    weights: tuple[float, ...]
    density: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part(Record):
    """One of the adapters: the name of its folder, the SHA-256 of its weights' file, its weight in the sum."""

    name: str
    sha256: str
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Combined(Record):
    """What was combined. files: bytes by name. scores: of base, parts and sum, none where the base is not here.

    base: hub id or name. base_fingerprint: None where no part is of a run. seconds: all that it took.
    """

    path: str
    base: str
    base_fingerprint: str | None
    kind: str
    rank: int | None
    method: str
    density: float | None
    parts: tuple[Part, ...]
    files: dict[str, int]
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


def base_of(adapters: Sequence[AdapterFolder], base: str | None) -> ModelRef:
    """The base that the adapters name, or the model `base`.

    Raises: ModelError where they name different ones, or theirs is not here.
    """
    first = adapters[0]
    for adapter in adapters[1:]:
        fingerprints = [each.result and each.result.base_fingerprint for each in (first, adapter)]
        if None not in fingerprints and fingerprints[0] != fingerprints[1]:
            raise ModelError(
                f"{first.folder} and {adapter.folder} were trained on different bases", fix="give adapters of one base"
            )
        names = [public_name(each.base or "a base it does not name") for each in (first, adapter)]
        if base is None and None in fingerprints and names[0] != names[1]:
            raise ModelError(
                f"different bases: {first.folder} is for {names[0]}, {adapter.folder} for {names[1]}",
                fix="--base MODEL if these are one model",
            )
    return resolve(base or model_of(first))


def mix_of(adapters: Sequence[AdapterFolder], method: str, weights: Sequence[float], density: float | None) -> Mix:
    """The mix that is asked for. weights: none is 1 each, of IA3 their mean.

    Raises: OptionError for figures that do not go with the method; ModelError for adapters that it cannot combine.
    """
    if len(adapters) < 2:
        raise OptionError("one adapter: nothing to combine", fix="name two folders or more")
    kinds = {adapter.kind for adapter in adapters}
    if len(kinds) > 1:
        raise ModelError(f"{_differ(adapters, 'adapter')}: kinds cannot be combined", fix="give adapters of one kind")
    kind = adapters[0].kind
    if kind not in COMBINED:
        raise ModelError(
            f"{adapters[0].folder}: PEFT has no sum of {kind.upper()} adapters",
            fix="autoft merge makes a model of each",
        )
    is_ia3 = kind == "ia3"
    if weights and len(weights) != len(adapters):
        raise OptionError(f"--weights has {len(weights)} numbers for {len(adapters)} adapters", fix="give one each")
    given = tuple(weights) or (1 / len(adapters) if is_ia3 else 1.0,) * len(adapters)
    if not all(math.isfinite(weight) for weight in given) or not any(given):
        raise OptionError("--weights: not finite, or all 0", fix="--weights 1,0.5")
    if is_ia3 and (method != "linear" or not math.isclose(sum(given), 1.0, abs_tol=1e-6)):
        raise OptionError(
            "IA3 learns factors, which can only be averaged", fix="--method linear, with --weights that sum to 1"
        )
    _check_density(method, density)
    return Mix(method=method, weights=given, density=density)


def combine(
    adapters: Sequence[AdapterFolder],
    mix: Mix,
    ref: ModelRef,
    out: Path,
    *,
    data: str | None = None,
    force: bool = False,
    say: Say = lambda _: None,
) -> Combined:
    """Write the sum of the adapters to the folder `out`, once it was loaded again and is finite.

    Args:
        ref: the base, of which the configuration is enough.
        data: rows to score it on, beside its parts and the base; None takes the rows that their runs held out.
        force: replace what an earlier call has written to `out`.
        say: told, in a line, what takes long.

    Raises: ModelError for adapters of different bases, or that the method cannot combine; OutputError; AutoftError
    where the sum does not load. Nothing is left at `out` then.
    """
    from autoft.trainer.run.fingerprint import versions

    began = time.perf_counter()
    check_target(out, is_folder=True, force=force)
    weights = fetched(ref)
    _refuse_unlike(adapters, mix)
    for adapter in adapters:
        check_base(adapter, ref, weights)
    labels = labels_of(adapters)
    parts = tuple(
        Part(name=label, sha256=sha256(adapter.folder / ADAPTER), weight=weight)
        for label, adapter, weight in zip(labels, adapters, mix.weights, strict=True)
    )
    needed_bytes = 4 * sum(adapter.num_params for adapter in adapters) + SMALL_FILES_BYTES
    with written_aside(out, is_folder=True, force=force, needed_bytes=needed_bytes) as aside:
        say(f"combining {len(adapters)} adapters ({mix.method})")
        notes = _write(adapters, mix, ref, aside)
        written = open_adapter(aside)
        if weights is not None:
            write_base_place(aside, weights)
        scores: tuple[Score, ...] = ()
        if weights is None:
            notes.append("not scored, and not loaded on the base: its weights are not on this machine")
        else:
            scores, more = score_adapters(adapters, written, weights, data=data, say=say)
            notes += more
        fingerprints = [adapter.result.base_fingerprint for adapter in adapters if adapter.result is not None]
        combined = Combined(
            path=str(out),
            base=written.base or ref.name,
            base_fingerprint=next(iter(fingerprints), None),
            kind=written.kind,
            rank=written.settings.get("rank"),
            method=mix.method,
            density=mix.density,
            parts=parts,
            files={name: size for name, size in files_of(aside).items() if name not in (LOCAL, IGNORE)},
            scores=scores,
            notes=tuple(notes),
            seconds=round(time.perf_counter() - began, 1),
            versions=versions(),
        )
        record = {"autoft_version": __version__, **combined.to_dict(), "path": out.name}
        write_text(aside / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        write_text(aside / CARD, _card(combined, out.name))
    return combined


def skeleton(adapter: AdapterFolder, config: Any) -> PreTrainedModel:
    """The base in float32 on the CPU, its tensors of the right shapes and a few bytes each: every value is one 0."""
    import torch

    from autoft.trainer.model.build import build_base

    base = build_base(adapter.recipe, config)
    for module in base.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            empty = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
        for name, tensor in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))
    return base


def _check_density(method: str, density: float | None) -> None:
    if method in CUTS and density is None:
        raise OptionError(f"--method {method} cuts values, and needs the share to keep", fix="--density 0.5")
    if method not in CUTS and density is not None:
        raise OptionError(
            f"--density: {method} cuts no values", fix=f"leave it out, or one of: {', '.join(sorted(CUTS))}"
        )
    if density is not None and not 0 < density <= 1:
        raise OptionError(f"--density {density:g} is not a share", fix="--density 0.5, above 0 and at most 1")


def _refuse_unlike(adapters: Sequence[AdapterFolder], mix: Mix) -> None:
    """Raises: ModelError naming what differs and must not, or what PEFT would leave out of the sum."""
    first = adapters[0]
    if mix.method in ONE_RANK and len({adapter.settings.get("rank") for adapter in adapters}) > 1:
        raise ModelError(f"{_differ(adapters, 'rank')}: {mix.method} needs one rank", fix="--method cat or svd")
    if first.kind == "ia3" and len({frozenset(adapter.settings["target_modules"]) for adapter in adapters}) > 1:
        raise ModelError(f"{_differ(adapters, 'target_modules')}: IA3 needs the same layers", fix="give others")
    for adapter in adapters:
        whole = {"use_dora": "DoRA's lengths of rows cannot be added", "rope_scaling": "its RoPE scaling would be lost"}
        for name, why in whole.items():
            if adapter.settings.get(name):
                raise ModelError(f"{adapter.folder}: {why}", fix="autoft merge makes a model of it")
        if adapter.config.get("trainable_token_indices"):
            raise ModelError(
                f"{adapter.folder}: PEFT adds updates of layers, and its new tokens would be lost",
                fix="autoft merge makes a model of it",
            )
        if adapter.config.get("modules_to_save"):
            raise ModelError(
                f"{adapter.folder}: its modules_to_save would be lost", fix="autoft merge makes a model of it"
            )


def _differ(adapters: Sequence[AdapterFolder], name: str) -> str:
    """The first adapter and the first whose setting is another, with both: "a has rank 4, b has rank 8"."""
    first = adapters[0]
    other = next(adapter for adapter in adapters if adapter.settings.get(name) != first.settings.get(name))
    values = [f"{adapter.folder} has {name} {shown(adapter.settings.get(name))}" for adapter in (first, other)]
    return ", ".join(values)


def _write(adapters: Sequence[AdapterFolder], mix: Mix, ref: ModelRef, aside: Path) -> list[str]:
    """Write the sum and a tokenizer; what to know of them. Raises: ModelError."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    names = [f"part_{number}" for number in range(len(adapters))]
    # PEFT's own svd decomposes whole updates, which takes hours for a 7B model; the exact sum has all that it needs
    figures = {"combination_type": "cat" if mix.method == "svd" else mix.method, "density": mix.density}
    try:
        model: Any = PeftModel.from_pretrained(skeleton(adapters[0], load_config(ref)), adapters[0].folder, names[0])
        for name, adapter in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(adapter.folder, adapter_name=name)
        for name, adapter in zip(names, adapters, strict=True):
            check_shapes(adapter, model, name)
        torch.manual_seed(SEED)
        with torch.no_grad():
            weights = list(mix.weights)
            model.add_weighted_adapter(names, weights, "default", **({} if adapters[0].kind == "ia3" else figures))
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"PEFT cannot combine them: {reason}", fix="give adapters of one base") from error
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    config = model.peft_config["default"]
    if mix.method == "svd":
        config.r = config.lora_alpha = max(int(adapter.settings["rank"]) for adapter in adapters)
        state = of_rank(state, config.r)
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AutoftError(f"the sum is not finite, {name} for one", fix="give other adapters or --weights")
    if hasattr(config, "use_rslora"):
        config.use_rslora = False  # the sum has all scaling in its weights; rsLoRA would scale them once more
    config.base_model_name_or_path, config.inference_mode = base_reference(ref, Path(ref.name)), True
    config.save_pretrained(aside)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, aside / ADAPTER, {"format": "pt"})
    return _write_tokenizer(adapters, ref, aside)


def of_rank(state: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The factors of LoRA whose product is nearest to that of `state`, of at most `rank`.

    The product of tall Q_b R_b and wide (Q_a R_a)^T has the singular values of R_b R_a^T, which is small.
    """
    import torch

    nearest: dict[str, torch.Tensor] = {}
    for name, a_RI in state.items():
        other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        if other == name:
            continue
        q_b, r_b = torch.linalg.qr(state[other])
        q_a, r_a = torch.linalg.qr(a_RI.T)
        left, values, right = torch.linalg.svd(r_b @ r_a.T)
        nearest[name] = right[:rank] @ q_a.T
        nearest[other] = q_b @ left[:, :rank] * values[:rank]
    return nearest


def _write_tokenizer(adapters: Sequence[AdapterFolder], ref: ModelRef, aside: Path) -> list[str]:
    """Write that of the first adapter that has one, else the base's; what to know of it."""
    own = [adapter.folder for adapter in adapters if (adapter.folder / "tokenizer_config.json").is_file()]
    tokenizer = load_run_tokenizer(own[0]) if own else load_tokenizer(ref)
    if tokenizer is None:
        return ["no tokenizer in these folders, nor beside the base"]
    tokenizer.save_pretrained(aside)
    templates = {load_run_tokenizer(folder).chat_template for folder in own}
    return [f"chat templates differ: that of {own[0]} is kept"] if len(templates) > 1 else []


def _card(combined: Combined, name: str) -> str:
    """README.md in the hub's format: what the adapter was made of."""
    base = combined.base if "/" in combined.base else None
    head = {"base_model": base, "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["autoft", "merge"]}
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items() if value)
    rows = "\n".join(f"| `{part.name}` | {part.weight:g} | `{part.sha256}` |" for part in combined.parts)
    density = "" if combined.density is None else f", density {combined.density:g}"
    size = "" if combined.rank is None else f" of rank {combined.rank}"
    scored = "".join(
        f"| {score.adapter} | {score.texts} | {score.quality.perplexity:.3f} |\n" for score in combined.scores
    )
    table = f"\n| adapter | texts | perplexity |\n|---|---|---|\n{scored}" if scored else ""
    return f"""---
{yaml}
---
# {name}

An adapter{size} for `{combined.base}`, combined by autoft {__version__} from {len(combined.parts)} others by \
`{combined.method}`{density}: {METHODS[combined.method]}.

| adapter | weight | SHA-256 of its {ADAPTER} |
|---|---|---|
{rows}
{table}"""
