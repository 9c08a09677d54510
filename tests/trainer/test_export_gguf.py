"""GGUF files of tiny models of every family, opened by llama.cpp's runtime beside transformers; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from autoft.errors import AutoftError, ModelError
from autoft.trainer.export import EXPORTERS
from autoft.trainer.export.exporter import Order
from autoft.trainer.export.exporting import export
from autoft.trainer.export.gguf import FAMILIES, check_convertible
from autoft.trainer.export.quantize import QUANTS, quantize, type_of
from autoft.trainer.export.scores import drift_of, load_with_adapter, score
from autoft.trainer.export.source import open_source
from autoft.trainer.export.texts import texts_of
from tests.trainer.exports import FAMILIES as SKETCHES
from tests.trainer.exports import save_adapter, save_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_files_compute_what_transformers_does(tmp_path: Path, family: str) -> None:
    base = save_base(tmp_path / "base", family)
    source = open_source(save_adapter(base, tmp_path / "adapter"))
    written = export(EXPORTERS["gguf"], source, Order(out=tmp_path / "out.gguf", quant="f32"))
    assert written.drift.mean_logprob < 0.01
    assert (tmp_path / "out.gguf").stat().st_size == written.bytes
    alone = export(EXPORTERS["gguf-lora"], source, Order(out=tmp_path / "lora.gguf", quant="f32"))
    assert alone.drift.mean_logprob < 0.01
    texts = texts_of(source)
    before, _ = score(load_with_adapter(replace(source, adapter=None), "float32"), texts.rows, texts.scored)
    after, _ = score(load_with_adapter(source, "float32"), texts.rows, texts.scored)
    assert drift_of(before, after).mean_logprob > 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "lora.gguf", "out.gguf"]


def test_every_family_has_a_sketch() -> None:
    assert set(SKETCHES) == set(FAMILIES)


def test_a_tensor_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    """As a converter's mistake would: the heads of one layer are left as transformers stores them."""
    source = open_source(save_adapter(save_base(tmp_path / "base"), tmp_path / "adapter"))
    order = Order(out=tmp_path / "out.gguf", quant="f32")
    exporter = EXPORTERS["gguf"]

    def write(*args: object) -> Path:
        path: Path = exporter.write(*args)  # type: ignore[arg-type]
        reader = gguf.GGUFReader(path, "r+")
        weights = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight").data
        weights[:] = weights[::-1].copy()
        del reader, weights
        return path

    with pytest.raises(AutoftError, match=r"log-probs differ from base and adapter by .* more than the bound of 0.01"):
        export(replace(exporter, write=write), source, order)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_types_of_tensors_are_llama_cpps() -> None:
    kinds = {
        name: type_of(name, [1024, 1024], "q4_k_m", num_layers=16, is_tied=False).name
        for name in (
            "output.weight",
            "token_embd.weight",
            "blk.0.attn_v.weight",
            "blk.2.attn_v.weight",
            "blk.5.ffn_down.weight",
        )
    }
    assert kinds == {
        "output.weight": "Q6_K",
        "token_embd.weight": "Q4_K",
        "blk.0.attn_v.weight": "Q6_K",
        "blk.2.attn_v.weight": "Q4_K",
        "blk.5.ffn_down.weight": "Q4_K",
    }
    assert type_of("token_embd.weight", [9, 1024], "q4_k_m", num_layers=16, is_tied=True).name == "Q6_K"
    assert type_of("blk.0.attn_q.weight", [9, 576], "q4_k_m", num_layers=16, is_tied=True).name == "Q5_0"
    assert type_of("output.weight", [9, 1024], "q4_0", num_layers=16, is_tied=False).name == "Q8_0"
    for name, shape in (
        ("blk.0.attn_norm.weight", [64]),
        ("blk.0.attn_q.bias", [64]),
        ("blk.0.attn_q.weight", [64, 40]),
    ):
        assert type_of(name, shape, "q8_0", num_layers=2, is_tied=True) is None


@pytest.mark.parametrize("quant", QUANTS)
def test_quantized_files_keep_keys_and_are_near_their_source(tmp_path: Path, quant: str) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "f32.gguf", "llama")
    writer.add_block_count(1)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_token_list(["a", "bé"])
    writer.add_tensor("blk.0.attn_q.weight", rows)
    writer.add_tensor("blk.0.attn_norm.weight", rows[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize(tmp_path / "f32.gguf", tmp_path / "out.gguf", quant)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "bé"]
    assert gguf.LlamaFileType(reader.fields["general.file_type"].contents()).name.lower() == f"mostly_{quant}"
    weights, norm = reader.tensors
    assert np.array_equal(norm.data, rows[0])
    error = np.abs(gguf.dequantize(weights.data, weights.tensor_type) - rows).mean() / np.abs(rows).mean()
    assert error < {"8": 0.01, "6": 0.02, "5": 0.05, "4": 0.1, "3": 0.2}[quant[1]]
    assert weights.n_bytes < rows.nbytes / 3


def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    source = open_source(save_adapter(base, tmp_path / "adapter"))
    check_convertible(source)
    for changed, message in (
        ({"model_type": "opt"}, "GGUF of opt models is not checked, and not written"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1"),
    ):
        config = type(source.config)(
            **{**source.config.to_dict(), **{k: v for k, v in changed.items() if k != "model_type"}}
        )
        if "model_type" in changed:
            config.model_type = changed["model_type"]
        with pytest.raises(ModelError, match=message):
            check_convertible(replace(source, config=config))
    source.tokenizer.add_tokens([f"<t{number}>" for number in range(50)])
    with pytest.raises(ModelError, match="its tokenizer has 313 tokens, the embedding 268"):
        check_convertible(source)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"use_dora": True}, "vllm", "vLLM takes no DoRA"),
        ({"modules_to_save": ["lm_head"]}, "vllm", "vLLM takes no modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, "gguf-lora", "llama.cpp takes no adapter on lm_head"),
        ({"use_dora": True}, "gguf-lora", "llama.cpp takes no DoRA"),
        ({"r": 600}, "vllm", "rank 600, and vLLM takes 512 at most"),
    ],
)
def test_adapters_that_a_tool_does_not_take_are_refused(tmp_path: Path, settings, kind, message) -> None:
    source = open_source(save_adapter(save_base(tmp_path / "base"), tmp_path / "adapter", **settings))
    with pytest.raises(ModelError, match=message):
        EXPORTERS[kind].check(source, Order(out=tmp_path / "out"))


def test_vllm_is_told_the_next_rank_that_it_takes(tmp_path: Path) -> None:
    source = open_source(save_adapter(save_base(tmp_path / "base"), tmp_path / "adapter", r=40))
    (command,) = EXPORTERS["vllm"].commands(source, Order(out=tmp_path / "out", name="mine"))
    assert command.endswith(f"--enable-lora --lora-modules mine={tmp_path / 'out'} --max-lora-rank 64")
