"""A finished run, opened again: its result, its tokenizer, and its model in the precision it was trained in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.errors import ModelError
from autoft.home import sha256
from autoft.schema import parse_json, read_text
from autoft.trainer.adapters import BY_TYPE, kind_of
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import RunResult
from autoft.trainer.runtime import environment
from autoft.trainer.sources.new_tokens import pieces_of
from autoft.trainer.sources.resolve import Say, fetch, load_config, resolve
from autoft.trainer.sources.weights import fingerprint
from autoft.trainer.storage.ownership import CARD, RESULT
from autoft.trainer.storage.places import LOCAL, private_job, public_name, read_places
from autoft.trainer.storage.run_folder import unfinished
from autoft.units import size

ADAPTER = "adapter_model.safetensors"
FIRST = "default"  # PEFT's name for the first adapter of a model
TOLD_BYTES = 2**30  # assumption: what is hashed in a second or so


def open_result(folder: Path, *, accept_changes: bool = False, say: Say = lambda _: None) -> RunResult:
    """The result of a run whose files, and whose base, are what they were; accept_changes: whatever they are.

    say: told, in a line, what takes long. Raises: ModelError.
    """
    result = read_result(folder)
    if not accept_changes:
        _check_files(folder, result, say)
        _check_base(folder, result)
    return result


def read_result(folder: Path) -> RunResult:
    """The result.json of a run. Raises: ModelError when `folder` holds no finished run."""
    if not (folder / RESULT).is_file():
        fix = "give the folder that `autoft run` wrote"
        if unfinished(folder).is_dir():
            fix = f"autoft resume {folder} goes on with the unfinished one"
        raise ModelError(f"{folder}: holds no finished run", fix=fix)
    where = str(folder / RESULT)
    values = parse_json(read_text(folder / RESULT), where=where)
    if not isinstance(values, dict):
        raise ModelError(f"{where}: holds no finished run", fix="give the folder that `autoft run` wrote")
    result = RunResult.from_dict(values, where=where)
    return replace(result, job=private_job(result.job, folder))


def _check_files(folder: Path, result: RunResult, say: Say) -> None:
    """Whether the run's files are what it wrote, byte by byte; people may write into its README.md.

    Raises: ModelError naming the first that is gone or another.
    """
    files = {name: folder / name for name in result.artifacts if name != CARD}
    for name, path in files.items():
        if not path.is_file():
            raise ModelError(f"{folder}: its {name} is gone", fix="restore the file, or run again")
    num_bytes = sum(path.stat().st_size for path in files.values())
    if num_bytes > TOLD_BYTES:
        say(f"checking the SHA-256 of {size(num_bytes)}")
    for name, path in files.items():
        if sha256(path) != result.artifacts[name]:
            raise ModelError(
                f"{path}: not the file that the run wrote: its SHA-256 is another than {RESULT} has",
                fix="restore the file, run again, or --accept-changes to use it as it is",
            )


def _check_base(folder: Path, result: RunResult) -> None:
    """Raises: ModelError when the base of an adapter is another than it was trained on, as far as samples tell."""
    if result.base_fingerprint is None or result.job.recipe.method == "full":
        return
    base = base_name(folder, result)
    if fingerprint(fetch(resolve(base))) != result.base_fingerprint:
        raise ModelError(
            f"{base}: not the weights that {folder} was trained on",
            fix="give the run its base back, or --accept-changes to use this one",
        )


def base_name(folder: Path, result: RunResult) -> str:
    """The base of the run in `folder`, as `resolve` takes it. Raises: ModelError when it is not here."""
    local = read_places(folder).get("base")
    for name in (local, result.base):
        if name and Path(name).is_dir():
            return name
    try:
        resolve(result.job.model)
    except ModelError as error:
        raise ModelError(
            f"{folder}: its base {result.base} is not on this machine",
            fix=f"""echo '{{"base": "/the/path/to/{result.base}"}}' > {folder / LOCAL}""",
        ) from error
    return result.job.model


def load_trained(folder: Path, result: RunResult, *, recipe: Recipe | None = None, for_loss: bool = False) -> Any:
    """Base and adapter, or the whole model, on the GPU if there is one. for_loss: ready for the recipe's loss.

    recipe: to load by, where it is not the run's own.
    Raises: ModelError when weights of it, or its base, are gone.
    """
    whole = result.job.recipe.method == "full"
    recipe = recipe or result.job.recipe
    # without its weights PEFT would look for a pickle, and then on the hub
    for written in ("config.json",) if whole else ("adapter_config.json", ADAPTER):
        if not (folder / written).is_file():
            raise ModelError(f"{folder}: its {written} is gone", fix="run again, or restore the file")
    if whole:
        # its own config.json has the scaling
        return load_named(str(folder.resolve()), replace(recipe, rope_scaling=None), for_loss=for_loss)
    model = put_adapter(load_named(base_name(folder, result), recipe, for_loss=for_loss), folder)
    restore_dtype(model, recipe)
    return model


def put_adapter(model: Any, folder: Path, name: str = FIRST) -> Any:
    """The model with the adapter in `folder` on it, under `name`, beside those that it has.

    Raises: ModelError where the adapter does not fit; those that the model has stay.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        _check_keys(model, folder / ADAPTER, name)
    except (RuntimeError, ValueError, TypeError, LookupError, SafetensorError, ModelError) as error:
        if name != FIRST and name in model.peft_config:
            model.delete_adapter(name)
        if isinstance(error, ModelError):
            raise
        reason, base = " ".join(str(error).split())[:160], public_name(str(model.config.name_or_path))
        raise ModelError(
            f"{folder}: its adapter cannot be put on {base}: {reason}", fix="restore its files, or run again"
        ) from error
    BY_TYPE[str(model.peft_config[name].peft_type.value)].mend(model)
    return model.eval()


def restore_dtype(model: Any, recipe: Recipe, name: str = FIRST) -> None:
    """Give the adapter `name` the dtype that it was trained in: PEFT widens what is narrower than float32."""
    from autoft.trainer.recipe import torch_dtype

    for weight, parameter in model.named_parameters():
        if kind_of(recipe).owns(weight) and name in weight.split("."):
            parameter.data = parameter.data.to(torch_dtype(recipe.adapter_dtype))


def _check_keys(model: Any, path: Path, name: str) -> None:
    """Raises: ModelError where the file has other weights than the model takes: PEFT only warns of that."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        stored = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if stored != wanted:
        one = min(stored ^ wanted)
        raise ModelError(
            f"{path}: {one} is {'missing' if one in wanted else 'no weight of this adapter'}, "
            f"{len(stored ^ wanted)} weights in all do not fit",
            fix="restore the file, or run again",
        )


def load_base(folder: Path, result: RunResult, *, for_loss: bool = False) -> Any:
    """What the run in `folder` began with. Raises: ModelError when it is gone."""
    return load_named(base_name(folder, result), result.job.recipe, for_loss=for_loss)


def load_run_tokenizer(folder: Path) -> Any:
    """The tokenizer that was saved with the run, its chat template with it. Raises: ModelError when it is gone."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{folder}: its tokenizer cannot be read: {reason}", fix="run again, or restore its files"
        ) from error


def load_named(name: str, recipe: Recipe, *, for_loss: bool = False) -> Any:
    """The base `name` as the recipe has it, on the GPU if there is one. Raises: ModelError."""
    environment.quiet()
    import torch

    from autoft.trainer.model.build import build_whole_base

    ref = resolve(name)
    weights = fetch(ref)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pieces = pieces_of(ref, recipe.new_tokens)
    model = build_whole_base(
        recipe, load_config(ref, weights), weights, device, for_loss=for_loss, pieces=pieces
    ).eval()
    model.config.use_cache = True
    return model
