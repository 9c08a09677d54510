"""A .gguf file as a model: checked to be whole, then converted once to an ordinary safetensors folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoft.errors import ModelError
from autoft.home import home, new_folder, sha256
from autoft.trainer.runtime import environment
from autoft.trainer.sources.gguf_header import check_header
from autoft.trainer.storage.run_folder import check_disk


def check_gguf(path: Path) -> None:
    """Raises: ModelError when `path` is missing, no GGUF file, or shorter than the tensors it announces."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file", fix="check the path")
    check_header(path)
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors  # maps every tensor, which fails where the file ends before it
    except Exception as error:
        raise ModelError(f"{path}: cut short or damaged", fix="download the file again") from error
    if not tensors:
        raise ModelError(f"{path}: holds no tensors", fix="give the .gguf file that has the model's weights")


def gguf_folder(path: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The converted model in AUTOFT_HOME, made now if it is not there. Keyed by the file's content."""
    folder = home() / "models" / f"{path.stem}-{sha256(path)[:12]}"
    if not (folder / "config.json").is_file():
        check_home(2 * _num_params(path), "the converted model")
        say(f"converting {path.name} to safetensors, once")
        with new_folder(folder) as staging:
            convert(path, staging)
    return folder


def check_home(needed_bytes: int, what: str) -> None:
    """Raises: OutputError when the disk of AUTOFT_HOME has less than needed_bytes free."""
    check_disk(home(), needed_bytes, what, fix="free some room, or set AUTOFT_HOME to a folder on another disk")


def convert(path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder` as safetensors in bfloat16.

    The weights leave their GGUF quantization; nothing in the folder says that they ever had one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    environment.quiet()
    where, name = path.parent, path.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            where,
            gguf_file=name,
            dtype=torch.float32,
            quantization_config=GgufConfig(gguf_file=name, dequantize=True),
            trust_remote_code=False,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: transformers cannot read this GGUF: {reason}", fix="use the model's safetensors folder"
        ) from error
    # transformers goes on calling it a GGUF-quantized model and would save it as one
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _num_params(path: Path) -> int:
    from gguf import GGUFReader

    return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
