"""What is exported: the folder of a run or of PEFT, opened with its base, tokenizer and configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoft.errors import ModelError
from autoft.home import sha256
from autoft.schema import object_in
from autoft.trainer.adapters import kind_of_config
from autoft.trainer.data.tokens import stop_ids
from autoft.trainer.evaluation.open_adapter import ADAPTER_CONFIG, PICKLED
from autoft.trainer.evaluation.open_run import ADAPTER, base_name, load_run_tokenizer, open_result
from autoft.trainer.model.rope import scaled_config
from autoft.trainer.recipe import Attention, Recipe
from autoft.trainer.result import RunResult
from autoft.trainer.runtime import environment
from autoft.trainer.sources.resolve import (
    ModelRef,
    Say,
    base_reference,
    fetch,
    load_config,
    load_stops,
    load_tokenizer,
    resolve,
)
from autoft.trainer.sources.suitable import refuse_unsuitable
from autoft.trainer.sources.weights import check_weights, fingerprint
from autoft.trainer.storage.ownership import RESULT
from autoft.trainer.storage.places import public_name, read_places


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An opened folder.

    result: of the run that wrote it, None where another tool did. weights: the folder of the base's 16-bit safetensors,
    or of the whole model, where `adapter` is None. adapter: what adapter_config.json says. config: of transformers,
    with the RoPE scaling of the run. recipe: how the 16-bit base is built, whatever the adapter was trained over.
    stops: token ids that end an answer. notes: what the user should know, a sentence each.
    """

    folder: Path
    result: RunResult | None
    weights: Path
    base: str
    base_fingerprint: str
    adapter: dict[str, Any] | None
    config: Any
    tokenizer: Any
    recipe: Recipe
    stops: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def quant_type(self) -> str | None:
        """Bits that the base was held in while it was trained: nf4, fp4 or int8; None for 16 or more."""
        return self.result.job.recipe.quant_type if self.result is not None else None

    def lineage(self) -> dict[str, Any]:
        """Where the exported weights come from, in plain values and without paths of this machine."""
        from autoft.trainer.run.fingerprint import versions

        adapter = self.folder / ADAPTER
        return {
            "run": public_name(str(self.folder.absolute())),
            "run_sha256": sha256(self.folder / RESULT) if self.result is not None else None,
            "adapter_sha256": sha256(adapter) if self.adapter is not None else None,
            "data_sha256": self.result.data_sha256 if self.result is not None else None,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "trained_over": self.quant_type or "16 bits or more",
            "versions": versions(),
        }


def open_source(
    folder: Path, *, base: str | None = None, accept_changes: bool = False, say: Say = lambda _: None
) -> Source:
    """Open the folder of a run, or a plain PEFT folder. base: the base model, where it is not what the folder names.

    accept_changes: open it although its files, or its base, are not what they were. say: told what takes long.
    Raises: ModelError when `folder` is neither, lacks files, or its base is missing, of another revision or quantized.
    """
    environment.quiet()
    if (folder / RESULT).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        result = open_result(folder, accept_changes=accept_changes or base is not None, say=say)
        return _of_run(folder, result, base, accept_changes, say)
    return _of_peft(folder, base, say)


def trained_token_ids(config: dict[str, Any]) -> list[int]:
    """Ids whose rows an adapter trains, by its adapter_config.json: a list, or a list for each module."""
    named = config.get("trainable_token_indices") or []
    return [number for ids in named.values() for number in ids] if isinstance(named, dict) else list(named)


def stored_vocabulary(source: Source) -> int | None:
    """Rows of the embedding where the adapter's file holds it, or trained tokens that the base has no rows for.

    None where the base's own rows do.
    """
    from safetensors import safe_open

    rows = 1 + max(trained_token_ids(source.adapter or {}), default=-1)
    if rows > source.config.get_text_config().vocab_size:
        return rows
    with safe_open(source.folder / ADAPTER, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_tokens.base_layer.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None


def _of_run(folder: Path, result: RunResult, base: str | None, accept_changes: bool, say: Say) -> Source:
    whole = result.job.recipe.method == "full"
    ref = resolve(str(folder.resolve()) if whole else base or base_name(folder, result))
    weights = fetch(ref, say)
    known = result.base_fingerprint
    if not whole and base is not None and not accept_changes and known not in (None, fingerprint(weights)):
        raise ModelError(
            f"{base}: not the weights that {folder} was trained on",
            fix="give the base that the run began with, or --accept-changes to use this one",
        )
    trained = result.job.recipe
    recipe = Recipe(
        base_dtype="float32",
        attention=_attention(load_config(ref, weights), trained.attention),
        rope_scaling=None if whole else trained.rope_scaling,
        seq_len=trained.seq_len,
    )
    tokenizer = load_run_tokenizer(folder)
    stops = stop_ids(tokenizer, load_stops(ref))
    named = result.base if whole else base_reference(ref, weights)
    return _opened(folder, result, ref, weights, named, tokenizer, recipe, stops, whole, ())


def _of_peft(folder: Path, base: str | None, say: Say) -> Source:
    adapter = object_in(folder / ADAPTER_CONFIG)
    kind_of_config(adapter, folder / ADAPTER_CONFIG)
    named = base or _local_base(folder) or adapter.get("base_model_name_or_path")
    if not named:
        raise ModelError(f"{folder}: its adapter_config.json names no base", fix="name it with --base MODEL")
    try:
        ref = resolve(named)
        weights = fetch(ref, say)
    except ModelError as error:
        raise ModelError(f"{folder}: its base {named} is not here: {error.what}", fix="--base FOLDER") from error
    notes = ["not a folder of autoft: no result.json, so the base's revision and the adapter's files are not checked"]
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))
    if not own:
        notes.append(f"no tokenizer in the folder: that of {named} is used")
    tokenizer = load_run_tokenizer(folder) if own else load_tokenizer(ref)
    if tokenizer is None:
        raise ModelError(f"{folder}: no tokenizer there, nor in {named}", fix="add tokenizer.json to the folder")
    recipe = Recipe(base_dtype="float32", attention=_attention(load_config(ref, weights), "sdpa"))
    stops = stop_ids(tokenizer, load_stops(ref)) if tokenizer.chat_template else load_stops(ref)
    return _opened(
        folder, None, ref, weights, base_reference(ref, weights), tokenizer, recipe, stops, False, tuple(notes)
    )


def _local_base(folder: Path) -> str | None:
    """Where the base of a combined adapter lies, if it still does."""
    local = read_places(folder).get("base")
    return local if local is not None and Path(local).is_dir() else None


def _opened(
    folder: Path,
    result: RunResult | None,
    ref: ModelRef,
    weights: Path,
    base: str,
    tokenizer: Any,
    recipe: Recipe,
    stops: list[int],
    whole: bool,
    notes: tuple[str, ...],
) -> Source:
    config = load_config(ref, weights)
    refuse_unsuitable(config)
    check_weights(weights)
    adapter = None
    if not whole:
        if not (folder / ADAPTER).is_file():
            pickled = ", only a pickle, which can run any code when opened" if (folder / PICKLED).is_file() else ""
            raise ModelError(f"{folder}: its {ADAPTER} is missing{pickled}", fix="restore the file, or train again")
        adapter = object_in(folder / ADAPTER_CONFIG)
        kind = kind_of_config(adapter, folder / ADAPTER_CONFIG)
        if not kind.on_layers:
            raise ModelError(
                f"{folder}: {kind.name} tuning puts vectors before each prompt, and changes no weight of the base: "
                "there is nothing to merge or to export",
                fix="autoft chat, autoft serve, or PEFT on the base",
            )
    return Source(
        folder=folder,
        result=result,
        weights=weights,
        base=base,
        base_fingerprint=fingerprint(weights),
        adapter=adapter,
        config=scaled_config(config, recipe),
        tokenizer=tokenizer,
        recipe=replace(recipe, rope_scaling=None) if whole else recipe,
        stops=tuple(stops),
        notes=notes,
    )


def _attention(config: Any, trained: Attention) -> Attention:
    """Attention that computes what the model means: that of Gemma 2 caps its scores, which only eager does."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) or trained == "eager":
        return "eager"
    return "sdpa"
