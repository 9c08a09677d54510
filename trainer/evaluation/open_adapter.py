"""The folder of an adapter, a run's or any tool's, opened without its base: what it is, and whether it fits one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import ModelError, some
from autoft.home import sha256
from autoft.schema import parse_json, read_text
from autoft.trainer.adapters import ADAPTERS, kind_of_config
from autoft.trainer.evaluation.open_run import ADAPTER, base_name, read_result
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import RunResult
from autoft.trainer.sources.resolve import ModelRef, resolve
from autoft.trainer.sources.weights import fingerprint, read_tensors
from autoft.trainer.storage.ownership import RESULT
from autoft.trainer.storage.places import public_name, read_places
from autoft.trainer.storage.run_folder import unfinished

ADAPTER_CONFIG = "adapter_config.json"
PICKLED = "adapter_model.bin"
PROMPT_WEIGHTS = "prompt_embeddings"  # PEFT's name for all that prompt tuning saves
# Keys of adapter_config.json that change neither the weights nor what is computed with them
ABOUT = frozenset({
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out",
    "feedforward_modules", "inference_mode", "init_ia3_weights", "init_lora_weights", "num_attention_heads",
    "num_layers", "num_transformer_submodules", "peft_type", "peft_version", "prompt_tuning_init",
    "revision", "target_modules", "task_type", "token_dim",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFolder:
    """An opened folder.

    result: of the run that wrote it, None where another tool did. config: what adapter_config.json says.
    settings: fields of the Recipe that the adapter fixes. shapes: of its weights, by their names in the file.
    dtype: of the weights, as safetensors names it.
    """

    folder: Path
    result: RunResult | None
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str

    @property
    def kind(self) -> str:
        return str(self.settings["adapter"])

    @property
    def num_params(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def base(self) -> str | None:
        """Hub id or name of the base, as the adapter has it; None where it names none."""
        if self.result is not None:
            return self.result.base
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named else None

    @property
    def recipe(self) -> Recipe:
        """A recipe of such an adapter, in float32."""
        return Recipe(base_dtype="float32", **self.settings)


def open_adapter(folder: Path) -> AdapterFolder:
    """The adapter in `folder`. Its weights are not read.

    Raises: ModelError when `folder` holds none, one of a kind that autoft does not train, or files that are not whole;
    FileFormatError for values in them that are wrong.
    """
    result = read_result(folder) if (folder / RESULT).is_file() else None
    if result is not None and result.job.recipe.method == "full":
        raise ModelError(
            f"{folder}: its run trained all weights and has no adapter", fix=f"autoft run {folder} --data FILE"
        )
    if not (folder / ADAPTER_CONFIG).is_file():
        fix = "give a folder that `autoft run` or PEFT wrote"
        if unfinished(folder).is_dir():
            fix = f"autoft resume {folder} first finishes its run"
        raise ModelError(f"{folder}: no adapter there, {ADAPTER_CONFIG} is missing", fix=fix)
    where = str(folder / ADAPTER_CONFIG)
    config = parse_json(read_text(folder / ADAPTER_CONFIG), where=where)
    if not isinstance(config, dict):
        raise ModelError(f"{where}: not a JSON object", fix="restore the file")
    settings = _settings(config, where) if result is None else _settings_of_run(result.job.recipe)
    if not (folder / ADAPTER).is_file():
        pickled = ", only a pickle, which can run any code when opened" if (folder / PICKLED).is_file() else ""
        raise ModelError(f"{folder}: its {ADAPTER} is missing{pickled}", fix="restore the file, or train again")
    hashes = {} if result is None else {name: result.artifacts.get(name) for name in (ADAPTER_CONFIG, ADAPTER)}
    for name, digest in hashes.items():
        if sha256(folder / name) != digest:
            raise ModelError(
                f"{folder / name}: not the file that the run wrote: its SHA-256 is another than {RESULT} has",
                fix="restore the file, or run again",
            )
    shapes, dtype = _weights(folder / ADAPTER)
    return AdapterFolder(folder=folder, result=result, config=config, settings=settings, shapes=shapes, dtype=dtype)


def model_of(adapter: AdapterFolder) -> str:
    """The base of the adapter, as `resolve` takes it. Raises: ModelError when it is named nowhere, or not here."""
    if adapter.result is not None:
        return model_of_run(adapter.folder, adapter.result)
    local = read_places(adapter.folder).get("base")
    if local is not None and Path(local).is_dir():
        return local
    if adapter.base is None:
        raise ModelError(f"{adapter.folder / ADAPTER_CONFIG}: names no base", fix="name the base as MODEL")
    try:
        resolve(adapter.base)
    except ModelError as error:
        raise ModelError(f"{adapter.folder}: its base {adapter.base} is not here", fix="name it as MODEL") from error
    return adapter.base


def model_of_run(folder: Path, result: RunResult) -> str:
    """The base of a run as it was named there, else where it lies now. Raises: ModelError when it is not here."""
    try:
        resolve(result.job.model)
    except ModelError:
        return base_name(folder, result)
    return result.job.model


def refuse_to_continue(adapter: AdapterFolder) -> None:
    """Raises: ModelError for an adapter of a form that training here would not keep: it names the first such key."""
    unlike = ADAPTERS[adapter.kind].unlike(adapter.config) or _beyond(adapter)
    if unlike is not None:
        raise ModelError(
            f"{adapter.folder / ADAPTER_CONFIG}: {unlike}, and autoft trains no such adapter",
            fix="continue it with the tool that wrote it",
        )


def check_settings(adapter: AdapterFolder, job: Job, *, where: str) -> None:
    """Raises: ModelError naming the first setting of the job's recipe that the adapter has otherwise."""
    for name, value in adapter.settings.items():
        planned = getattr(job.recipe, name)
        if not same(planned, value):
            raise ModelError(
                f"{where}: job.recipe.{name} is {planned}, and {adapter.folder} has {value}",
                fix=f"set {name} to that of the adapter, or plan again",
            )


def check_base(adapter: AdapterFolder, ref: ModelRef, weights: Path | None) -> None:
    """Whether the adapter of a run was trained on these weights, as far as samples tell. weights: None where not here.

    Raises: ModelError.
    """
    known = None if adapter.result is None else adapter.result.base_fingerprint
    if known is not None and weights is not None and fingerprint(weights) != known:
        raise ModelError(
            f"{ref.name}: not the weights that {adapter.folder} was trained on",
            fix="name the base of that run, or leave MODEL out",
        )


def check_shapes(adapter: AdapterFolder, model: Any, name: str = "default") -> None:
    """Whether the file has the weights that an adapter of a model has, of the same shapes.

    model: also one on meta. name: of its adapter.
    Raises: ModelError naming the first that does not fit.
    """
    needed = _needed_shapes(model, name)
    path, base = adapter.folder / ADAPTER, public_name(str(model.get_base_model().config.name_or_path)) or "the model"
    fix = "name the base that the adapter was trained on"
    differ = sorted(needed.keys() ^ adapter.shapes.keys())
    if differ:
        lacking = "is missing" if differ[0] in needed else f"belongs to no layer of {base}"
        raise ModelError(f"{path}: {differ[0]} {lacking}; {len(differ)} weights in all do not fit", fix=fix)
    for weight, shape in needed.items():
        if adapter.shapes[weight] != shape:
            raise ModelError(
                f"{path}: {weight} is {_by(adapter.shapes[weight])}, and {base} takes {_by(shape)}", fix=fix
            )


def _needed_shapes(model: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Of the weights that the file of the model's adapter `name` has, by their names there."""
    from peft import get_peft_model_state_dict

    if model.peft_config[name].is_prompt_learning:  # whose values PEFT copies, where meta has none
        return {PROMPT_WEIGHTS: tuple(model.prompt_encoder[name].embedding.weight.shape)}
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {weight: tuple(tensor.shape) for weight, tensor in state.items()}


def put_weights(adapter: AdapterFolder, model: Any) -> None:
    """Copy the weights of the adapter into the adapter that `model` was built with; its dtype stays.

    Raises: ModelError as check_shapes does.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    check_shapes(adapter, model)
    set_peft_model_state_dict(model, load_file(adapter.folder / ADAPTER))


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; the order of layers' names says nothing."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return set(one) == set(other)
    return bool(one == other)


def shown(value: Any) -> str:
    """A value of a setting as --set takes it."""
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def _beyond(adapter: AdapterFolder) -> str | None:
    """The first key of another tool's configuration that is not at PEFT's default and no setting of ours."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    defaults = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(ADAPTERS[adapter.kind].type)]().to_dict()
    known = {*ABOUT, *ADAPTERS[adapter.kind].keys.values()}
    if adapter.settings.get("new_tokens"):
        known.add("trainable_token_indices")
    differ = (key for key, value in adapter.config.items() if value and key not in known and value != defaults.get(key))
    return next((f"{key} is {str(adapter.config[key])[:80]}" for key in differ), None)


def _settings_of_run(recipe: Recipe) -> dict[str, Any]:
    """Of a run; positions that were scaled are scaled by the same factor again."""
    kind = ADAPTERS[recipe.adapter]
    names, saved = {"adapter", *kind.keys}, kind.saved(recipe)
    if kind.on_layers:
        names.add("target_modules")
    if recipe.new_tokens:
        names |= {"new_tokens", "first_new_id"}
    if recipe.rope_scaling is not None:
        names |= {"rope_scaling", "seq_len"}
    return {name: getattr(saved, name) for name in Recipe.__dataclass_fields__ if name in names}


def _settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of another tool's adapter. Raises: ModelError, FileFormatError."""
    kind = kind_of_config(config, where)
    values = {name: config[key] for name, key in kind.keys.items() if config.get(key) is not None}
    if not kind.on_layers:
        recipe = Recipe.from_dict({"adapter": kind.name, **values}, where=where)
        return {name: getattr(recipe, name) for name in ("adapter", *values)}
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets) or not targets:
        raise ModelError(
            f"{where}: target_modules is not a list of layers' names", fix="save the adapter again with a list of names"
        )
    if "alpha" in values and isinstance(values["alpha"], int):
        values["alpha"] = float(values["alpha"])
    fields = {"adapter": kind.name, "target_modules": sorted(targets), **values}
    recipe = Recipe.from_dict(fields, where=where)
    return {name: getattr(recipe, name) for name in fields}


def _weights(path: Path) -> tuple[dict[str, tuple[int, ...]], str]:
    """(shapes by name, dtypes in words). Raises: ModelError for a file that is not whole."""
    tensors = read_tensors(path)
    try:
        shapes = {name: tuple(int(length) for length in header["shape"]) for name, header in tensors.items()}
        dtypes = sorted({str(header["dtype"]) for header in tensors.values()})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a whole safetensors file", fix="download it again") from error
    if not shapes:
        raise ModelError(f"{path}: holds no weights", fix="download it again")
    return shapes, some(dtypes)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
