"""`--to gguf-lora`: the adapter alone as a file of llama.cpp, which puts it on a GGUF of the same base."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError
from autoft.schema import object_in
from autoft.trainer.evaluation.open_run import ADAPTER
from autoft.trainer.export.exporter import Answer, Bound, Exporter, Order, Question
from autoft.trainer.export.gguf import MODULES, NATS, check_convertible, convert, open_gguf
from autoft.trainer.export.safetensors import merged_bytes
from autoft.trainer.export.source import Source

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
BASE_FILE = "base.gguf"  # made to load the adapter, and removed
EDGES = ("lm_head", "embed_tokens", "wte", "output")


def refuse_beyond_lora(source: Source, tool: str) -> dict[str, Any]:
    """The adapter's configuration, where it is nothing but low-rank updates. Raises: ModelError."""
    if source.adapter is None:
        raise ModelError(f"{source.folder}: a whole model, without an adapter", fix="--to gguf, or --to safetensors")
    adapter = source.adapter
    if adapter.get("peft_type") != "LORA":
        raise ModelError(
            f"{source.folder}: {tool} takes LoRA alone, and this is {adapter.get('peft_type')}",
            fix="autoft merge, then give the merged model",
        )
    for key, name in (
        ("use_dora", "DoRA"),
        ("modules_to_save", "modules_to_save"),
        ("trainable_token_indices", "trained tokens"),
        ("lora_bias", "lora_bias"),
        ("target_parameters", "adapters on experts' tensors"),
    ):
        if adapter.get(key):
            raise ModelError(f"{source.folder}: {tool} takes no {name}", fix="autoft merge, then give the merged model")
    if adapter.get("bias", "none") != "none":
        raise ModelError(f"{source.folder}: {tool} takes no trained biases", fix="autoft merge first")
    return adapter


def _check(source: Source) -> None:
    check_convertible(source)
    refuse_beyond_lora(source, "llama.cpp")
    for module in _modules(source):
        if module.rsplit(".", 1)[-1] in EDGES:
            raise ModelError(
                f"{source.folder}: llama.cpp takes no adapter on {module}", fix="--to gguf, which merges it"
            )


def _modules(source: Source) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A of rank x in, B of out x rank) by the module's name. Raises: ModelError for other weights in the file."""
    from safetensors.torch import load_file

    weights = load_file(source.folder / ADAPTER)
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in sorted(weights):
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            modules[module.removeprefix(PREFIX)] = weights[name], weights[f"{module}.lora_B.weight"]
        elif not name.endswith(".lora_B.weight"):
            raise ModelError(f"{source.folder}: llama.cpp takes no adapter on {name}", fix="--to gguf, which merges it")
    return modules


def _scaling(adapter: dict[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the update of a module by."""
    from peft.utils.other import get_pattern_key

    patterns = adapter.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), adapter["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if adapter.get("use_rslora") else rank))


def _write(source: Source, aside: Path, order: Order) -> Path:
    import gguf
    import numpy as np
    import torch
    from conversion import ModelType, get_model_architecture, get_model_class

    convert(replace(source, adapter=None), aside, replace(order, name=source.base), "f16", BASE_FILE)
    reader = gguf.GGUFReader(aside / BASE_FILE)
    architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, int(reader.fields[f"{architecture}.block_count"].contents()))
    settings = object_in(source.weights / "config.json")
    kind = get_model_class(get_model_architecture(settings, ModelType.TEXT), mmproj=False)
    config = source.config.get_text_config()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    adapter = refuse_beyond_lora(source, "llama.cpp")
    dtype = {"f16": np.float16, "f32": np.float32}[str(order.quant)]
    writer = gguf.GGUFWriter(aside / order.out.name, architecture)
    writer.add_type("adapter")
    writer.add_name(order.name or order.out.stem)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter["lora_alpha"]))
    writer.add_string("autoft.record", json.dumps(source.lineage()))
    for module, (a, b) in _modules(source).items():
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise ModelError(f"{source.folder}: llama.cpp has no tensor for {module}", fix="--to gguf")
        rank = a.shape[0]
        # llama.cpp multiplies by alpha / rank, whatever the adapter was trained with
        b = b.float() * (_scaling(adapter, module, rank) * rank / float(adapter["lora_alpha"]))
        last = module.rsplit(".", 1)[-1]
        if getattr(kind, "undo_permute", False) and last in heads:
            b = kind.permute(b, heads[last], heads[last])
        writer.add_tensor(f"{name}.lora_a", a.to(torch.float32).numpy().astype(dtype))
        writer.add_tensor(f"{name}.lora_b", b.contiguous().numpy().astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return aside / order.out.name


def _reopen(source: Source, written: Path, question: Question) -> Answer:
    return open_gguf(source, written.parent / BASE_FILE, question, lora=written)


def _commands(order: Order) -> tuple[str, ...]:
    return (f"llama-server -m BASE.gguf --lora {shlex.quote(str(order.out))}",)


EXPORTER = Exporter(
    name="gguf-lora",
    summary="the adapter alone, for llama.cpp",
    is_folder=False,
    check=lambda source, order: _check(source),
    disk_bytes=lambda source, order: 3 * merged_bytes(source),
    write=_write,
    reopen=lambda source, written, order, question: _reopen(source, written, question),
    bound=lambda order: Bound(of="distance", nats=NATS["f16"]),
    commands=lambda source, order: _commands(order),
    quants=("f16", "f32"),
    modules=MODULES[:2],
)
