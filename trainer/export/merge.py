"""The adapter folded into the 16-bit base, tensor by tensor: a shard and one layer's update are held, never the model.

PEFT computes each merged weight (LoRA, rsLoRA, DoRA, trained tokens, modules_to_save): the model is built without
storage, the adapter on the CPU, and each stored weight passes through its layer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft import __version__
from autoft.errors import ModelError
from autoft.home import write_text
from autoft.schema import object_in
from autoft.trainer.adapters import is_adapter
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.export.source import Source, stored_vocabulary
from autoft.trainer.export.staging import RECORD
from autoft.trainer.sources.resolve import Say
from autoft.trainer.sources.weights import ADAPTER as ADAPTER_PREFIX
from autoft.trainer.sources.weights import INDEX

if TYPE_CHECKING:
    import torch

MOVE = "_move_adapter_to_device_of_base_layer"  # of PEFT's layers
SHARD_BYTES = 2 * 2**30  # held in memory while it fills
COPIED = ("*.model", "LICENSE*", "NOTICE*", "preprocessor_config.json", "processor_config.json")

Get = Callable[[str], "torch.Tensor"]
Edit = Callable[[Get], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Plan:
    """edits: what becomes of a stored weight, by its name in the files. added: weights that no file of the base has.

    untied: whether embedding and head part ways; vocab_size: rows of the embedding where it was resized.
    """

    edits: dict[str, Edit]
    added: dict[str, Edit]
    untied: bool
    vocab_size: int | None


def merge(source: Source, out: Path, say: Say = lambda _: None) -> None:
    """Write the merged model into the empty folder `out`: weights, configuration, tokenizer, record.

    A whole model (method full) is copied. Weights keep the dtype in which the base stores them.
    Raises: ModelError where a weight of the adapter has no counterpart in the base, or the merged one is not finite.
    """
    names = _stored_names(source.weights)
    plan = _plan(source, names) if source.adapter is not None else Plan({}, {}, False, None)
    if plan is None:
        say("the base stores its weights under other names than transformers: merging in memory")
        untied, vocab_size = _merge_in_memory(source, out)
    else:
        _write_shards(_merged(source, names, plan), out)
        untied, vocab_size = plan.untied, plan.vocab_size
    write_beside(source, out, untied=untied, vocab_size=vocab_size)


def write_beside(source: Source, out: Path, *, untied: bool = False, vocab_size: int | None = None) -> None:
    """Write what goes with merged weights: config.json, generation_config.json, tokenizer, chat template, record."""
    write_text(out / "config.json", _json(_config(source, untied=untied, vocab_size=vocab_size)))
    generation = object_in(source.weights / "generation_config.json")
    generation.pop("_from_model_config", None)
    generation["eos_token_id"] = list(source.stops)
    if source.tokenizer.pad_token_id is not None:
        generation["pad_token_id"] = source.tokenizer.pad_token_id
    write_text(out / "generation_config.json", _json(generation))
    source.tokenizer.save_pretrained(out)
    for pattern in COPIED:
        for path in source.weights.glob(pattern):
            (out / path.name).write_bytes(path.read_bytes())
    write_record(source, out)


def write_record(source: Source, out: Path, **more: Any) -> None:
    """Write the record that says what the folder was made from."""
    write_text(out / RECORD, _json({"autoft_version": __version__, **source.lineage(), **more}))


def _config(source: Source, *, untied: bool, vocab_size: int | None) -> dict[str, Any]:
    """The base's config.json with what training has changed."""
    config = object_in(source.weights / "config.json")
    config.pop("_name_or_path", None)
    text_key = next((key for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), None)
    text = config[text_key] if text_key else config
    if source.recipe.rope_scaling is not None:
        scaled = source.config.get_text_config()
        for stale in ("rope_scaling", "rope_theta"):
            text.pop(stale, None)
        text["rope_parameters"] = copy.deepcopy(dict(scaled.rope_parameters))
        text["max_position_embeddings"] = scaled.max_position_embeddings
    if untied:
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    if vocab_size is not None:
        text["vocab_size"] = vocab_size
    return config


def _stored_names(folder: Path) -> dict[str, Path]:
    """The file of each weight of the base, by the weight's name, in the order of the files."""
    from safetensors import safe_open

    names: dict[str, Path] = {}
    index = object_in(folder / INDEX).get("weight_map")
    listed = None if index is None else {folder / name for name in index.values()}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(ADAPTER_PREFIX) or (listed is not None and path not in listed):
            continue
        with safe_open(path, "pt") as file:
            names |= dict.fromkeys(file.keys(), path)
    return names


def _reader(names: Mapping[str, Path]) -> Get:
    from safetensors import safe_open

    def get(name: str) -> torch.Tensor:
        with safe_open(names[name], "pt") as file:
            weight: torch.Tensor = file.get_tensor(name)
            return weight

    return get


def _plan(source: Source, names: Mapping[str, Path]) -> Plan | None:
    """What is done to which stored weight; None where stored and built names do not correspond one to one."""
    vocab_size = stored_vocabulary(source)
    model = _without_storage(source, vocab_size)
    edits: dict[str, Edit] = {}
    added: dict[str, Edit] = {}
    head, embedding = _head_and_embedding(model)
    for name, (edit, needs) in _edits(model).items():
        stored = {need: _stored_as(need, names) for need in needs}
        if name == head and _stored_as(name, names) is None:
            continue  # tied: below
        if None in stored.values():
            return None
        edits[str(_stored_as(name, names))] = _with_names(edit, stored)  # type: ignore[arg-type]
    untied = False
    stored_embedding = _stored_as(embedding, names)
    if _stored_as(head, names) is None and stored_embedding is not None:
        known = dict(_edits(model))
        changes_head, changes_embedding = head in known, embedding in known
        if changes_head or changes_embedding:
            stands_for = {head: stored_embedding, embedding: stored_embedding}
            head_edit: Edit = (
                _with_names(known[head][0], stands_for) if changes_head else lambda get: get(stored_embedding)
            )
            if not (changes_head and changes_embedding and _same(edits[stored_embedding], head_edit, names)):
                untied = True
                added[_head_name(stored_embedding, head, embedding)] = head_edit
    return Plan(edits, added, untied, vocab_size)


def _same(left: Edit, right: Edit, names: Mapping[str, Path]) -> bool:
    get = _reader(names)
    return bool((left(get) == right(get)).all())


def _head_name(stored_embedding: str, head: str, embedding: str) -> str:
    """The head's name beside that of the embedding, where the base stores its weights under a prefix of its own."""
    prefix = stored_embedding.removesuffix(embedding)
    return f"{prefix}{head}" if stored_embedding.endswith(embedding) else head


def _with_names(edit: Callable[[Get], torch.Tensor], stored: Mapping[str, str]) -> Edit:
    return lambda get: edit(lambda name: get(stored[name]))


def _without_storage(source: Source, vocab_size: int | None) -> Any:
    """The model on meta, with the adapter's weights on the CPU. Raises: ModelError where they do not fit."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from autoft.trainer.model.build import build_base

    config = copy.deepcopy(source.config)
    if vocab_size is not None:
        config.get_text_config().vocab_size = vocab_size
    base = build_base(replace(source.recipe, rope_scaling=None), config)
    try:
        model = PeftModel.from_pretrained(base, source.folder, low_cpu_mem_usage=True, torch_device="cpu")
        # PEFT moves the adapter to its layers' device, which has no storage: it is loaded once more, and stays here
        for module in model.modules():
            if hasattr(module, MOVE):
                setattr(module, MOVE, lambda adapter_name: None)
        set_peft_model_state_dict(model, load_file(source.folder / ADAPTER), low_cpu_mem_usage=True)
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{source.folder}: its adapter cannot be put on {source.base}: {reason}", fix="give its own base"
        ) from error
    if lost := [name for name, weight in model.named_parameters() if is_adapter(name) and weight.is_meta]:
        raise ModelError(
            f"{source.folder / ADAPTER}: {lost[0]} is missing", fix="restore the adapter's files, or train again"
        )
    return model.get_base_model()


def _head_and_embedding(model: Any) -> tuple[str, str]:
    """Names of the weights of head and embedding as transformers has them without an adapter."""
    modules = {module: name for name, module in model.named_modules()}
    names = (modules[model.get_output_embeddings()], modules[model.get_input_embeddings()])
    head, embedding = (f"{_plain(name)}.weight" for name in names)
    return head, embedding


def _plain(name: str) -> str:
    """A module's name without what PEFT puts around it."""
    for inner in (".base_layer", ".original_module", ".token_adapter", ".modules_to_save.default"):
        name = name.replace(inner, "")
    return name


def _edits(model: Any) -> dict[str, tuple[Edit, tuple[str, ...]]]:
    """By a weight's name in transformers: its edit, and the names of the weights that this reads."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    edits: dict[str, tuple[Edit, tuple[str, ...]]] = {}
    handled: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(handled) and handled:
            continue
        if isinstance(module, ModulesToSaveWrapper):
            for part, weight in module.modules_to_save["default"].named_parameters():
                edits[f"{name}.{part}"] = (_constant(weight), ())
        elif isinstance(module, TrainableTokensWrapper):
            through = _through(module.token_adapter, name, "weight")
            edits[f"{name}.weight"] = (_with_rows(through, len(module.original_module.weight)), (f"{name}.weight",))
        elif isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            parts = [part for part, _ in layer.named_parameters(recurse=False)]
            if "weight" not in parts:
                raise ModelError(
                    f"{name}: an adapter on the experts' own tensors cannot be merged", fix="use it with PEFT"
                )
            needs = tuple(f"{name}.{part}" for part in parts)
            trained = [part for part in parts if part == "weight" or _changes_bias(module)]
            edits |= {f"{name}.{part}": (_through(module, name, part), needs) for part in trained}
            for part in (part for part in parts if part not in trained):
                if not (weight := getattr(layer, part)).is_meta:
                    edits[f"{name}.{part}"] = (_constant(weight), ())
        else:
            for part, weight in module.named_parameters(recurse=False):
                if not weight.is_meta:
                    edits[f"{name}.{part}"] = (_constant(weight), ())
            continue
        handled = (*handled, f"{name}.")
    return edits


def _changes_bias(layer: Any) -> bool:
    """Whether merging the layer's adapter changes its bias too: LoRA with lora_bias, IA3 but for inputs."""
    if hasattr(layer, "lora_bias"):
        return bool(layer.lora_bias.get("default"))
    return not getattr(layer, "is_feedforward", True)


def _constant(weight: torch.Tensor) -> Edit:
    return lambda get: weight.detach()


def _through(layer: Any, name: str, part: str) -> Edit:
    """The weight as PEFT merges it, computed in float32. Raises, when called: ModelError where it is not finite."""

    def edit(get: Get) -> torch.Tensor:
        import torch

        base = layer.get_base_layer()
        ghosts = dict(base.named_parameters(recurse=False))
        try:
            for each in ghosts:
                stored = get(f"{name}.{each}").float()
                setattr(base, each, torch.nn.Parameter(stored, requires_grad=False))
            layer.merge(safe_merge=True)
            merged: torch.Tensor = getattr(base, part).detach()
            return merged
        except ValueError as error:
            raise ModelError(f"{name}: the merged weights are not finite: {error}", fix="train again") from error
        finally:
            layer.merged_adapters.clear()
            for each, ghost in ghosts.items():
                setattr(base, each, ghost)

    return edit


def _with_rows(edit: Edit, rows: int) -> Edit:
    """The edit of a weight to which rows of zeros are added first, where it has fewer than `rows`."""
    import torch

    def extended(weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(weight, (0, 0, 0, max(0, rows - weight.shape[0])))

    return lambda get: edit(lambda name: extended(get(name)))


def _stored_as(name: str, names: Mapping[str, Path]) -> str | None:
    """The stored weight that transformers calls `name`: the same, or the only one with its longest ending."""
    if name in names:
        return name
    parts = name.split(".")
    for first in range(1, len(parts) - 1):
        ending = ".".join(parts[first:])
        matches = [stored for stored in names if stored == ending or stored.endswith(f".{ending}")]
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def _merged(source: Source, names: Mapping[str, Path], plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the merged model, one at a time, in the dtype that the base stores it in."""
    get = _reader(names)
    for name in names:
        stored = get(name)
        if name not in plan.edits:
            yield name, stored
            continue
        merged = plan.edits[name](get)
        if merged.shape != stored.shape and plan.vocab_size is None:
            raise ModelError(
                f"{source.folder}: {name} is {tuple(merged.shape)} there and {tuple(stored.shape)} in {source.base}",
                fix="give its own base",
            )
        yield name, merged.to(stored.dtype).contiguous()
    for name, edit in plan.added.items():
        like = next(iter(names))
        yield name, edit(get).to(get(like).dtype).contiguous()


def _write_shards(weights: Iterator[tuple[str, torch.Tensor]], out: Path) -> None:
    """Write weights as they come, in files of SHARD_BYTES, with an index where there is more than one."""
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []
    held_bytes = total_bytes = 0

    def flush() -> None:
        save_file(shard, out / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, weight in weights:
        if shard and held_bytes + weight.nbytes > SHARD_BYTES:
            flush()
            held_bytes = 0
        shard[name] = weight.clone()  # else a memory map of the base stays open
        held_bytes += weight.nbytes
        total_bytes += weight.nbytes
    flush()
    if len(shards) == 1:
        (out / "part-0.safetensors").rename(out / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for at, names in enumerate(shards):
        file = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
        (out / f"part-{at}.safetensors").rename(out / file)
        weight_map |= dict.fromkeys(names, file)
    write_text(out / INDEX, _json({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}))


def _merge_in_memory(source: Source, out: Path) -> tuple[bool, int | None]:
    """The same with the whole model in memory, for bases whose stored names transformers changes when it loads them."""
    from autoft.trainer.export.scores import load_with_adapter

    dtype = str(source.config.dtype or "bfloat16").removeprefix("torch.")
    model = load_with_adapter(source, dtype).merge_and_unload(safe_merge=True)
    model.save_pretrained(out, max_shard_size=SHARD_BYTES)
    return not model.config.get_text_config().tie_word_embeddings, stored_vocabulary(source)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
