"""Tiny models of the families that are exported, and adapters on them, for tests: real, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import CHAT_TEMPLATE

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # wide, so that a tensor in the wrong place shows
}
# By model_type: what the family has of its own
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 64},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 64},
    "phi3": {"head_dim": None, "original_max_position_embeddings": 256},
    "smollm3": {},
    "granite": {"head_dim": None},
}
# Families whose tokenizer is SentencePiece's, which llama.cpp's converter reads from tokenizer.model
SENTENCEPIECE = {"gemma2": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer", "phi3": "LlamaTokenizer"}
SENTENCES = (
    "The cat sat on the mat, and the dog ran in the sun.",
    "What is the capital of France? The capital of France is Paris.",
    'Return {"ok": true} as JSON; one, two, three, four, five: 1 2 3 4 5.',
)
SKETCH = {name: {**SMALL, **own} for name, own in FAMILIES.items()}


def make_tokenizer() -> Any:
    """One token a byte, the chat's special tokens, and a few merges: llama.cpp takes no BPE without any."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n")]
    vocabulary = [*specials, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def save_sentencepiece(folder: Path, tokenizer_class: str) -> Any:
    """A tokenizer with a tokenizer.model that falls back on bytes, written to `folder`, as transformers reads it."""
    import io
    import json

    import sentencepiece
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=["<|im_start|>", "<|im_end|>"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        add_dummy_prefix=tokenizer_class == "LlamaTokenizer",
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    # legacy: a space after each special token too, as llama.cpp does
    settings |= {"tokenizer_class": tokenizer_class, "chat_template": CHAT_TEMPLATE, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def save_base(folder: Path, family: str = "llama", **settings: Any) -> Path:
    """A base of the family in float32, with weights that no other call has unless seed is the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = SENTENCEPIECE.get(family)
    tokenizer = save_sentencepiece(folder, kind) if kind else make_tokenizer()
    known = {name: value for name, value in {**SKETCH[family], **settings}.items() if value is not None}
    dtype = known.pop("dtype", torch.float32)
    seed = known.pop("seed", 0)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer) + 5,  # as many have more rows than tokens
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **known,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, *, add_tokens: int = 0, std: float = 0.1, **settings: Any) -> Path:
    """A PEFT folder on `base` whose every trained weight is random and not zero; settings with `ia3`: of that kind."""
    import torch
    from peft import IA3Config, LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    if add_tokens:
        model.resize_token_embeddings(model.config.vocab_size + add_tokens, mean_resizing=False)
    if settings.pop("ia3", False):
        config = IA3Config(task_type="CAUSAL_LM", **settings)
    else:
        given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
        config = LoraConfig(task_type="CAUSAL_LM", **given)
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += std * torch.randn_like(parameter)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, save_embedding_layers=bool(add_tokens))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
