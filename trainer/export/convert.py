"""The process in which llama.cpp's own converter writes a merged folder as one GGUF file.

    python -m autoft.trainer.export.convert SPEC.json ANSWER.json

SPEC: `folder`, `out`, `type` (f32, f16 or bf16), `name`, `record` (text for the key autoft.record), `stops` (token ids
that end an answer). ANSWER: `pre`, the pre-tokenizer that was taken, where its hash is not known to llama.cpp.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

# By what splits a text before BPE merges: part of a pattern in tokenizer.json, and llama.cpp's name for it
PATTERNS = (
    (r"\p{N}{1,3}", "llama-bpe"),
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", "qwen2"),
)


def pre_tokenizer(folder: Path) -> str | None:
    """llama.cpp's name for what tokenizer.json does before merging, told by its parts; None where not known."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pre = tokenizer.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers") or [pre]
    kinds = [part.get("type") for part in parts]
    patterns = json.dumps([part.get("pattern") for part in parts], ensure_ascii=False)
    for pattern, name in PATTERNS:
        if json.dumps(pattern)[1:-1] in patterns:
            return name
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    return None


def main(question: Path, answer: Path) -> None:
    """Convert one folder. Raises: NotImplementedError, ValueError of the converter's."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    logging.basicConfig(level=logging.ERROR)
    spec: dict[str, Any] = json.loads(question.read_text(encoding="utf-8"))
    folder = Path(spec["folder"])
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    settings = ModelBase.load_hparams(folder, False)
    kind = get_model_class(get_model_architecture(settings, ModelType.TEXT), mmproj=False)
    chosen: dict[str, str] = {}
    known = kind.get_vocab_base_pre

    def by_parts(self: Any, tokenizer: Any) -> str:
        """llama.cpp knows pre-tokenizers by a hash of ids; what it makes of ours is compared afterwards."""
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            name = pre_tokenizer(folder)
            if name is None:
                raise
            chosen["pre"] = name
            return name

    kind.get_vocab_base_pre = by_parts
    with torch.inference_mode():
        model = kind(folder, types[spec["type"]], Path(spec["out"]), model_name=spec["name"])
        model.gguf_writer.add_string("autoft.record", spec["record"])
        write_vocabulary = model.set_vocab

        def with_stops() -> None:
            write_vocabulary()
            keys = model.gguf_writer.kv_data[0]
            end = keys.get("tokenizer.ggml.eos_token_id")
            others = [stop for stop in spec["stops"] if end is None or stop != end.value]
            if others and "tokenizer.ggml.eot_token_id" not in keys:
                model.gguf_writer.add_eot_token_id(others[-1])

        model.set_vocab = with_stops
        model.write()
    answer.write_text(json.dumps(chosen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
