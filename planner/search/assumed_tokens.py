"""The data measured without the model's tokenizer, which the hub has and this machine has not: bytes, not tokens."""

from __future__ import annotations

import importlib.resources
import math
from dataclasses import replace
from typing import Any

from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.data.tokens import Example
from autoft.trainer.objectives.loss import IGNORED
from autoft.trainer.sources.resolve import ModelRef

BYTES_PER_TOKEN = 3  # assumption, on the safe side: English text has about 4, code and numbers about 3
TEMPLATE = "qwen3.jinja"  # of TRL's, which takes system turns, tools and thoughts
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def prepare_assumed(ref: ModelRef, data: str, eval_data: str | None, options: dict[str, Any]) -> Prepared:
    """As `prepare`, with lengths that are assumed and tokens that mean nothing. Raises: DataError, OptionError."""
    most = options["max_tokens"]
    counted = prepare(
        ref,
        data,
        eval_data,
        **{**options, "max_tokens": most * BYTES_PER_TOKEN},
        ready=(_tokenizer_of_bytes(), None),
        stops=(),
    )
    note = f"{ref.hub_id}: no tokenizer here, so lengths are assumed: a token for every {BYTES_PER_TOKEN} bytes of text"
    return replace(
        counted,
        splits=replace(counted.splits, notes=(note, *counted.splits.notes)),
        train=replace(counted.train, examples=[_shrunk(example) for example in counted.train.examples], facts={}),
        heldout=[_shrunk(example) for example in counted.heldout],
        thinking=(),
    )


def _shrunk(example: Example) -> Example:
    num, trained = (math.ceil(n / BYTES_PER_TOKEN) for n in (len(example.input_ids), example.trained_tokens))
    num = max(2, num)
    return Example([0] * num, [IGNORED] * (num - trained) + [0] * trained)


def _tokenizer_of_bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    template = importlib.resources.files("trl").joinpath("chat_templates", TEMPLATE).read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
