"""`--to nf4` and `--to int8`: the merged model, its linear layers quantized once by bitsandbytes and stored so."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from autoft.errors import ModelError
from autoft.trainer.export.exporter import Bound, Exporter, Order
from autoft.trainer.export.merge import SHARD_BYTES, merge, write_record
from autoft.trainer.export.reload import reload_folder
from autoft.trainer.export.safetensors import merged_bytes
from autoft.trainer.export.source import Source
from autoft.trainer.runtime import environment

# What the mean log-prob may lose, in nats
NATS = {"nf4": 0.25, "int8": 0.05}


def _check(source: Source) -> None:
    """Refuse layers that bitsandbytes does not take. Raises: ModelError."""
    config = source.config.get_text_config()
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise ModelError(
            f"{source.base}: bitsandbytes leaves its experts in 16 bits, so the folder would be hardly smaller",
            fix="--to safetensors, or --to gguf",
        )


def _write(source: Source, aside: Path, order: Order, quant_type: str) -> Path:
    """Merge, load the merged model quantized, and save it."""
    import torch

    from autoft.trainer.sources.suitable import auto_class

    merged = aside / "merged"
    merged.mkdir()
    merge(source, merged, order.say)
    environment.import_bitsandbytes()
    from transformers import BitsAndBytesConfig

    if quant_type == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    order.say(f"quantizing to {quant_type}")
    model = auto_class(source.config).from_pretrained(
        merged,
        dtype=torch.bfloat16,
        quantization_config=quantization,
        device_map={"": "cpu"},
        use_safetensors=True,
        trust_remote_code=False,
    )
    model.save_pretrained(aside, max_shard_size=SHARD_BYTES)
    del model
    source.tokenizer.save_pretrained(aside)
    shutil.copyfile(merged / "generation_config.json", aside / "generation_config.json")
    shutil.rmtree(merged)
    write_record(source, aside, quantized=quant_type)
    return aside


def _exporter(quant_type: str, bits: int) -> Exporter:
    def write(source: Source, aside: Path, order: Order) -> Path:
        return _write(source, aside, order, quant_type)

    return Exporter(
        name=quant_type,
        summary=f"the merged model in {bits} bits, for transformers",
        is_folder=True,
        check=lambda source, order: _check(source),
        disk_bytes=lambda source, order: 2 * merged_bytes(source),
        write=write,
        reopen=lambda source, written, order, question: reload_folder(source, written, question),
        bound=lambda order: Bound(of="loss", nats=NATS[quant_type]),
        commands=lambda source, order: (f"transformers chat {shlex.quote(str(order.out))}",),
    )


EXPORTERS = (_exporter("nf4", 4), _exporter("int8", 8))
