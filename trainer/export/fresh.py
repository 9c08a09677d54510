"""The process that loads an exported folder with transformers, as another machine would, and scores texts.

    python -m autoft.trainer.export.fresh SPEC.json ANSWER.json

SPEC: `folder` of a model; `adapter`, a folder of PEFT, or null; `tokenizer`, its folder where that is another; `dtype`;
`rows` and `scored` as texts.Texts has them; `logits`, a file of the reference's, or null; `texts`.
ANSWER: `logprobs`; `max_logit`, the largest distance of a logit; `ids` of `texts`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(question: Path, answer: Path) -> None:
    """Answer one question."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    environment.import_libraries()
    environment.quiet()
    spec = json.loads(question.read_text(encoding="utf-8"))
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from autoft.trainer.export.scores import score

    folder = spec["folder"]
    model = load_model(folder, spec["dtype"])
    if spec.get("adapter"):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, spec["adapter"])
    tokenizer = AutoTokenizer.from_pretrained(spec.get("tokenizer") or folder, trust_remote_code=False)
    logprobs, logits_NV = score(model.eval(), spec["rows"], spec["scored"])
    max_logit = None
    if spec.get("logits"):
        reference_NV = load_file(spec["logits"])["logits"]
        max_logit = float((logits_NV - reference_NV).abs().max())
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spec["texts"]]
    answer.write_text(json.dumps({"logprobs": logprobs, "max_logit": max_logit, "ids": ids}), encoding="utf-8")


def load_model(folder: str, dtype: str) -> Any:
    """The model in `folder`, on the CPU. Raises: ValueError where weights are missing or of other shapes."""
    from transformers import AutoConfig

    from autoft.trainer.sources.suitable import auto_class

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    attention = "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else "sdpa"
    model, info = auto_class(config).from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": "cpu"},
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise ValueError(f"{len(info[kind])} {kind.replace('_', ' ')}, {min(info[kind])} for one")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes 0.50 would round the scales once more
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
