"""What MODEL means, in all five kinds, and that each brings config, tokenizer and weights to a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoft.errors import ModelError, OutputError
from autoft.trainer.sources import gguf as gguf_module
from autoft.trainer.sources.gguf import check_gguf, gguf_folder
from autoft.trainer.sources.resolve import (
    ModelRef,
    base_reference,
    fetch,
    fetched,
    load_config,
    load_tokenizer,
    resolve,
)
from autoft.trainer.sources.starter import starter_folder
from tests.conftest import CHAT_TEMPLATE

CATALOGUE_ID = "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole two-layer Llama in a GGUF file: header, byte-level tokenizer with two merges, chat template, weights."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def write_gguf(path: Path) -> None:
    from gguf import GGUFWriter
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), 64), "output_norm": (64,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (64,), "ffn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64),
                "attn_output": (64, 64), "ffn_gate": (128, 64), "ffn_up": (128, 64), "ffn_down": (64, 128),
            }.items()
        }  # fmt: skip
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- resolve -------------------------------------------------------------------------------------------------------


def test_the_five_kinds(tiny_model, tiny_gguf):
    assert resolve("starter") == ModelRef(name="starter", kind="starter")
    assert resolve(str(tiny_model)) == ModelRef(name=str(tiny_model), kind="folder", path=tiny_model)
    assert resolve(str(tiny_gguf)) == ModelRef(name=str(tiny_gguf), kind="gguf", path=tiny_gguf)
    assert resolve("nobody/nothing") == ModelRef(name="nobody/nothing", kind="hub", hub_id="nobody/nothing")
    catalogue = resolve("qwen2.5-0.5b-instruct")
    assert (catalogue.kind, catalogue.hub_id) == ("catalogue", CATALOGUE_ID)
    assert resolve(CATALOGUE_ID).profile == catalogue.profile


def test_paths_are_made_absolute(tiny_model, monkeypatch):
    """So that a plan made here can run from another folder's adapter."""
    monkeypatch.chdir(tiny_model.parent)
    for name in ("tiny", "./tiny", "tiny/", "../" + tiny_model.parent.name + "/tiny"):
        ref = resolve(name)
        assert ref.kind == "folder"
        assert ref.local.is_absolute()
        assert ref.local.samefile(tiny_model)


def test_the_home_folder_is_found(tiny_model, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert resolve("~/tiny").local == tiny_model


@pytest.mark.parametrize("name", ["./nope", "./nope/x", "../nope", "~/nope", "~/nope/x", "/nope/x", "nope/x/", "nope/"])
def test_a_missing_path_is_no_hub_id(name):
    with pytest.raises(ModelError) as refused:
        resolve(name)
    assert refused.value.what == f"{name}: no such folder"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("stater", "starter"),
        ("qwen2.5-0.5b-instrct", "qwen2.5-0.5b-instruct"),
        ("tinylama-1.1b-chat", "tinyllama-1.1b-chat-v1.0"),
    ],
)
def test_near_matches_are_offered(name, match):
    with pytest.raises(ModelError, match=f"no model {name!r}.* Did you mean .*{match}"):
        resolve(name)


def test_a_name_like_nothing_offers_nothing():
    with pytest.raises(ModelError) as refused:
        resolve("zzzz")
    assert "Did you mean" not in str(refused.value)


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="It holds an adapter: give its base model"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "cannot be read as a model configuration"), ("[]", "cannot be read"), ("{}", "has no model_type")],
)
def test_a_broken_config_names_its_file(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as refused:
        resolve(str(tmp_path))
    assert refused.value.what.startswith(f"{tmp_path / 'config.json'}: {why}")


# --- folder --------------------------------------------------------------------------------------------------------


def test_a_folder_is_used_where_it_is(tiny_model):
    ref = resolve(str(tiny_model))
    assert load_config(ref).model_type == "llama"
    assert load_tokenizer(ref).eos_token == "<|im_end|>"
    assert fetch(ref) == tiny_model
    assert base_reference(ref, tiny_model) == tiny_model.name


def test_a_config_alone_is_enough_to_plan_and_not_to_train(tiny_model, tmp_path):
    shutil.copy(tiny_model / "config.json", tmp_path)
    ref = resolve(str(tmp_path))
    assert load_config(ref).num_hidden_layers == 2
    assert load_tokenizer(ref) is None
    with pytest.raises(ModelError, match="enough to plan, not to train"):
        fetch(ref)


def test_pickles_are_never_opened(tiny_model, tmp_path):
    """The weights are a pickle that would leave a file behind."""
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    shutil.copy(tiny_model / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match=r"only as pickles \(pytorch_model.bin\), which can run any code"):
        fetch(resolve(str(tmp_path)))
    assert not (tmp_path / "opened").exists()


# --- catalogue and hub ---------------------------------------------------------------------------------------------


def test_a_catalogue_name_has_its_config_without_the_network():
    config = load_config(resolve("qwen2.5-0.5b-instruct"))
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("qwen2", 896, 24)


def test_training_takes_the_configuration_beside_the_weights(tiny_model):
    ref = resolve("qwen2.5-0.5b-instruct")
    assert load_config(ref, tiny_model).hidden_size == load_config(resolve(str(tiny_model))).hidden_size
    assert load_config(ref, tiny_model).model_type == "llama"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network. The library reads both when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub_cache: Path, hub_id: str, files: Path) -> Path:
    """`files` as the hub's client keeps the repository `hub_id`."""
    repository, commit = hub_cache / f"models--{hub_id.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return shutil.copytree(files, repository / "snapshots" / commit)


def test_a_hub_model_comes_from_the_cache(tiny_model, hub_cache):
    folder = cached(hub_cache, "somebody/tiny", tiny_model)
    ref = resolve("somebody/tiny")
    told: list[str] = []
    assert load_config(ref).model_type == "llama"
    assert load_tokenizer(ref).eos_token == "<|im_end|>"
    assert fetch(ref, told.append) == folder
    assert told == ["fetching somebody/tiny from the hub"]
    assert base_reference(ref, folder) == "somebody/tiny"


def test_what_is_here_need_not_be_fetched(tiny_model, hub_cache, tmp_path):
    away = resolve("somebody/tiny")
    assert fetched(away) is None
    assert fetched(resolve("starter")) is None
    folder = cached(hub_cache, "somebody/tiny", tiny_model)
    assert fetched(away) == folder
    assert fetched(resolve(str(tiny_model))) == tiny_model
    shutil.copy(tiny_model / "config.json", tmp_path)
    assert fetched(resolve(str(tmp_path))) is None


def test_a_hub_model_of_pickles_is_refused(tiny_model, hub_cache):
    folder = cached(hub_cache, "somebody/tiny", tiny_model)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only as pickles"):
        fetch(resolve("somebody/tiny"))


@pytest.mark.usefixtures("hub_cache")
def test_no_network_and_no_cache_offers_known_names():
    for read in (load_config, load_tokenizer, fetch):
        with pytest.raises(ModelError) as refused:
            read(resolve("Qwen/Qwen2.5-0.5B-Instrct"))
        assert refused.value.what.startswith("Qwen/Qwen2.5-0.5B-Instrct: no folder here, not in the hub's local cache")
        assert CATALOGUE_ID in str(refused.value.fix)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["a/b..c", "a/b--c", "a/-b", "a/b.git"])
def test_what_the_hub_would_not_take_as_an_id_is_refused(name):
    with pytest.raises(ModelError, match=f"{name}: (no hub id|no folder here)"):
        load_config(resolve(name))


# --- gguf ----------------------------------------------------------------------------------------------------------


def test_a_gguf_becomes_a_plain_folder_once(tiny_gguf, own_home, monkeypatch):
    """Whole: config without a word of quantization, tokenizer, and the very weights in bfloat16."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    ref = resolve(str(tiny_gguf))
    told: list[str] = []
    folder = fetch(ref, told.append)
    assert told == ["converting tiny.gguf to safetensors, once"]
    assert folder.parent == own_home / "models"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert "quant" not in (folder / "config.json").read_text().lower()

    converted = resolve(str(folder))
    assert load_config(converted).to_dict()["hidden_size"] == load_config(ref).hidden_size == 64
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    assert model.dtype == torch.bfloat16
    stored = next(t for t in GGUFReader(tiny_gguf).tensors if t.name == "blk.1.ffn_down.weight")
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, torch.tensor(np.array(stored.data)).bfloat16())
    for tokenizer in (load_tokenizer(ref), load_tokenizer(converted)):
        assert tokenizer.convert_ids_to_tokens(tokenizer("hello")["input_ids"]) == ["he", "ll", "o"]
        assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|im_end|>", CHAT_TEMPLATE)

    monkeypatch.setattr(gguf_module, "convert", None)  # calling it would fail
    assert gguf_folder(tiny_gguf, told.append) == folder
    assert len(told) == 1


def test_other_content_under_the_same_name_is_another_model(tiny_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_module, "convert", lambda path, folder: (folder / "config.json").touch())
    one = gguf_folder(tiny_gguf)
    shutil.copy(tiny_gguf, tmp_path / "tiny.gguf")
    assert gguf_folder(tmp_path / "tiny.gguf") == one
    with (tmp_path / "tiny.gguf").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    assert gguf_folder(tmp_path / "tiny.gguf") != one


@pytest.mark.parametrize("left", [4, 20, 100, 5000, 0.5, 0.99])
def test_a_gguf_cut_short_is_refused(tiny_gguf, tmp_path, left):
    """In its header, in its tokenizer, in its tensors."""
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: left if isinstance(left, int) else int(left * len(whole))])
    with pytest.raises(ModelError) as refused:
        resolve(str(cut))
    assert str(refused.value) == f"{cut}: cut short or damaged\nTo fix: download the file again"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04", "not a GGUF file"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 200, "cut short or damaged"),
        (b"GGUF\x03\0\0\0" + b"\0" * 200, "holds no tensors"),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path, content, why):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError) as refused:
        check_gguf(path)
    assert refused.value.what == f"{path}: {why}"


def test_a_gguf_that_cannot_be_converted_leaves_nothing(tmp_path, own_home):
    from gguf import GGUFWriter

    path = tmp_path / "odd.gguf"
    writer = GGUFWriter(path, "nonesuch")
    writer.add_tensor("w", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="transformers cannot read this GGUF"):
        gguf_folder(path)
    assert list((own_home / "models").iterdir()) == []


def test_a_gguf_is_converted_only_where_there_is_room(tiny_gguf, own_home, monkeypatch):
    monkeypatch.setattr(gguf_module, "_num_params", lambda path: 2**60)
    with pytest.raises(OutputError, match=r"the converted model needs .* MiB, its disk has") as refused:
        gguf_folder(tiny_gguf)
    assert "AUTOFT_HOME" in str(refused.value.fix)
    assert list(own_home.iterdir()) == []


# --- starter -------------------------------------------------------------------------------------------------------


def test_the_starter_that_is_there_needs_no_network(tiny_model, own_home, monkeypatch):
    folder = shutil.copytree(tiny_model, own_home / "models" / "SmolLM2-135M-Instruct")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    ref = resolve("starter")
    assert starter_folder() == fetch(ref) == folder
    assert load_config(ref).model_type == "llama"
    assert load_tokenizer(ref).eos_token == "<|im_end|>"
    assert base_reference(ref, folder) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
