"""Fixtures that several folders share: a tiny real model, small data, and the command line run in this process."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

from autoft.cli.main import main

# The models here are tiny: a second thread only waits for the first, and spins while it waits. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As the command line does: imports and models make objects by the million, and the search for cycles took a fifth.
gc.set_threshold(100_000, *gc.get_threshold()[1:])
# How long an example takes says nothing of the code: the first one may load a library, on a machine that is busy.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")
# No test asks the hub; huggingface_hub reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where processes share the files, none is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What the imports of the tests have made stays: each full search for cycles, as a run makes some, is spared it."""
    gc.collect()
    gc.freeze()


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AUTOFT_HOME in a temporary folder, so that no test sees another's cache or the user's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("AUTOFT_HOME", str(home))
    monkeypatch.delenv("COLUMNS", raising=False)  # readline, which pytest imports, may have set it
    return home


@pytest.fixture(autouse=True)
def same_gpus() -> Iterator[None]:
    """A run on the CPU hides the GPUs from its process, which here goes on with other tests."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield
    if before is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


@pytest.fixture
def autoft(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`autoft(*words)` runs the command line in this process."""

    def run(*words: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        code = stopped.value.code
        out, err = capfd.readouterr()
        return Done(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and a real byte-level tokenizer: everything a model folder has."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def save_tiny_model(folder: Path) -> Path:
    """The model of `tiny_model`, into a new folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    """One token a byte, and the chat's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*specials, *alphabet])}, merges=[]))
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


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Forty rows of prompt and completion."""
    return write_jsonl(
        tmp_path / "data.jsonl", [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(40)]
    )


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
