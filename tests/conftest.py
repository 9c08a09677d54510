"""Fixtures that several folders share: a tiny real model, small data, and the command line run in this process."""

from __future__ import annotations

import gc
import inspect
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

from autoft.cli.main import main
from tests.support.shapes import save_shape

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


# The files that take longest, the first of them most; names alone, which stay where folders change
LONGEST = (
    "test_starter.py", "test_gpu_evidence.py", "test_model_catalogue.py", "test_readme.py", "test_export_gguf.py",
    "test_cpu_truth.py", "test_gpu_validate.py", "test_what_if.py", "test_plan.py", "test_writes.py",
    "test_several.py", "test_machines.py", "test_bad_input.py", "test_planner.py", "test_families.py",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run files, and the tests of each, in random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, then those with slow tests: where processes share the files, none has a long one at the end.

    In another order with --shuffle; a file's tests stay together, as they share what its fixtures make.
    """
    seed = config.getoption("--shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)
        place = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
        items.sort(key=lambda item: place[item.path])
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(LONGEST)), item.path not in slow))


_frozen_at = 0  # modules that were imported then


def pytest_runtest_setup() -> None:
    """What imports have made stays: each full search for cycles, as a run makes some, is spared it."""
    global _frozen_at
    if len(sys.modules) > _frozen_at + 100:
        gc.collect()
        gc.freeze()
        _frozen_at = len(sys.modules)


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@contextmanager
def put_back() -> Iterator[None]:
    """Environment and working folder are afterwards what they were before.

    A command changes both as if its process ended with it: a run on the CPU hides the GPUs, `resume` goes to the folder
    where the run was started. Here other tests follow.
    """
    environment, folder = dict(os.environ), Path.cwd()
    yield
    os.chdir(folder)
    for name in {*os.environ, *environment} - {"PYTEST_CURRENT_TEST"}:
        if name not in environment:
            del os.environ[name]
        elif os.environ.get(name) != environment[name]:
            os.environ[name] = environment[name]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[object]:
    """A fixture that several tests share leaves nothing behind either; one that yields cleans up by itself."""
    if fixturedef.scope == "function" or inspect.isgeneratorfunction(fixturedef.func):
        return (yield)
    with put_back():
        return (yield)


HOME_OF_THE_USER = os.environ.get("AUTOFT_HOME")


@pytest.fixture(scope="session", autouse=True)
def home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """AUTOFT_HOME for what fixtures of several tests run: the user's own history and list of runs stay as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFT_HOME", str(tmp_path_factory.mktemp("session_home")))
        yield


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with put_back():
        yield


@pytest.fixture(autouse=True)
def own_home(as_before: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    """AUTOFT_HOME in a temporary folder, so that no test sees another's cache or the user's.

    as_before: begun before the MonkeyPatch, so that it ends after it.
    """
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("AUTOFT_HOME", str(home))
    monkeypatch.delenv("COLUMNS", raising=False)  # readline, which pytest imports, may have set it
    return home


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


@pytest.fixture(scope="session")
def wide_shape(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model to plan for: a configuration alone, of two wide layers. See tests/support/shapes.py."""
    return save_shape(tmp_path_factory.mktemp("shapes") / "wide")


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
    return write_forty_rows(tmp_path / "data.jsonl")


def write_forty_rows(path: Path) -> Path:
    """The rows of `data_file`, into a file."""
    return write_jsonl(path, [{"prompt": f"number {n}", "completion": f"it is {n}"} for n in range(40)])


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
