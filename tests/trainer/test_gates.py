"""Gates: a sound run passes and is left as it was; each fault, really there, is refused with its reason."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from autoft.errors import DataError, ModelError, TrainingError
from autoft.trainer.checks import gates, reference_loss
from autoft.trainer.checks.gates import check_data, check_model
from autoft.trainer.data import written
from autoft.trainer.data.fit import fit
from autoft.trainer.data.load import load_data
from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.data.tokens import Example, Tokenized, tokenize
from autoft.trainer.doctor import compute
from autoft.trainer.job import Job
from autoft.trainer.model.build import _unpack_as_one_row, build_model, without_adapter
from autoft.trainer.objectives import OBJECTIVES
from autoft.trainer.objectives.loss import IGNORED, compute_loss
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import resolve
from tests.conftest import CHAT_TEMPLATE, make_tokenizer, write_jsonl
from tests.planner.families import FAMILIES, family_config
from tests.trainer.test_templates import make

FP32 = {"base_dtype": "float32", "loss": "selected", "micro_batch": 2, "seq_len": 128}
PACKED = FP32 | {"packing": True}
QLORA = FP32 | {"method": "qlora", "quant_type": "nf4", "double_quant": True}
INT8 = FP32 | {"method": "qlora", "quant_type": "int8"}


def job(**settings: Any) -> Job:
    return Job(model="tiny", recipe=Recipe(**settings))


@pytest.fixture
def prepared(tiny_model, data_file) -> Prepared:
    return prepare(resolve(str(tiny_model)), str(data_file))


def prepared_with(tokenizer: Any, path: Path) -> Prepared:
    splits = load_data(str(path), eval_rows=0)
    notes = fit(tokenizer, splits.train, model="tiny")
    return Prepared(splits, tokenizer, tokenize(splits.train, tokenizer), [], None, (), tuple(notes))


def build(folder: Path, job: Job) -> Any:
    return build_model(job.recipe, config=AutoConfig.from_pretrained(folder), weights=folder, device="cpu")


def digest(model: Any) -> list[tuple[str, float, bool]]:
    return [(name, float(p.detach().double().sum()), p.requires_grad) for name, p in model.named_parameters()]


@pytest.mark.parametrize(
    "settings",
    [
        FP32,
        PACKED,
        FP32 | {"loss": "fused", "gradient_checkpointing": True, "dropout": 0.5},
        PACKED | {"loss": "logits", "base_dtype": "bfloat16"},
        FP32 | {"use_dora": True},
        PACKED | {"objective": "dft"},
        FP32 | {"method": "full", "base_dtype": "bfloat16", "autocast": True},
        QLORA,
        QLORA | {"packing": True, "base_dtype": "bfloat16", "autocast": True},
        INT8,
    ],
    ids=["lora", "packed", "fused", "logits", "dora", "dft", "full", "nf4", "nf4 bfloat16", "int8"],
)
def test_a_sound_run_passes_and_is_left_as_it_was(tiny_model, prepared, settings) -> None:
    work = job(**settings)
    check_data(prepared, work)
    model = build(tiny_model, work)
    for layer in without_adapter(model).model.layers:
        layer.self_attn.attention_dropout = 0.5
    before, state, modes = digest(model), torch.get_rng_state(), [m.training for m in model.modules()]
    check_model(model, prepared, work)
    assert digest(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert {layer.self_attn.attention_dropout for layer in without_adapter(model).model.layers} == {0.5}
    assert all(p.grad is None for p in model.parameters())
    if work.recipe.dropout:
        assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}


def test_texts_pass(tiny_model, tmp_path) -> None:
    texts = prepare(
        resolve(str(tiny_model)),
        str(write_jsonl(tmp_path / "t.jsonl", [{"text": f"word {n} " * 40} for n in range(20)])),
    )
    check_data(texts, job(**PACKED))
    check_model(build(tiny_model, job(**PACKED)), texts, job(**PACKED))


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "cohere2", "granite", "qwen3_moe"])
def test_other_architectures_pass(family, prepared, tmp_path) -> None:
    """Scaled logits, soft caps, sliding windows, transposed weights, experts."""
    layers = "n_layer" if "n_layer" in FAMILIES[family][1] else "num_hidden_layers"
    config = family_config(family, **{layers: 7 if family == "gemma3" else 2})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    for settings in (PACKED, FP32 | {"loss": "fused"}):
        check_model(build(tmp_path, job(**settings)), prepared, job(**settings))


@pytest.mark.parametrize(("prompt", "answer"), [(2, 3), (50, 30), (8, 60)])
def test_long_rows_are_cut_to_what_shows_a_trained_token(prompt, answer) -> None:
    ids = list(range(100, 100 + prompt + answer))
    kept = gates._cut(Example(ids, [IGNORED] * prompt + ids[prompt:]), 32)
    assert len(kept.input_ids) == min(32, len(ids))
    assert kept.input_ids[0] == 100
    assert any(label != IGNORED for label in kept.labels[1:])
    assert all(label in (IGNORED, token) for token, label in zip(kept.input_ids, kept.labels, strict=True))


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("shape", [(300, 128), (100, 96), (7, 9)])
def test_4_bit_weights_are_unpacked_by_the_format_s_own_rule(shape, double_quant, monkeypatch) -> None:
    """Within half a step of the weights: the widest between two codes of NF4 is 0.304 of a block's largest weight."""
    import bitsandbytes as bnb

    monkeypatch.setattr(reference_loss, "UNPACKED_AT_ONCE", 4096)  # in more than one part
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=double_quant)
    found = torch.cat(list(reference_loss.unpacked_4bit(packed, state)))
    assert found.shape == weights.shape
    assert (found - weights).abs().max() < 0.16 * weights.abs().max()
    _unpack_as_one_row()  # as every run over 4 bits has it
    torch.testing.assert_close(found, bnb.functional.dequantize_4bit(packed, state), rtol=0, atol=0)


def test_the_base_is_asked_without_flash_attention(tiny_model, prepared) -> None:
    """It runs on no CPU: what is asked here has been answered by another attention."""
    model = build(tiny_model, job(**FP32))
    examples = prepared.train.examples[:2]
    wanted = reference_loss.base_loss(model, examples)
    model.config._attn_implementation = "flash_attention_2"
    assert reference_loss.base_loss(model, examples) == wanted
    assert without_adapter(model).model.layers[0].self_attn.config._attn_implementation == "flash_attention_2"


def test_a_row_that_trains_nothing_but_its_first_token_is_refused(prepared) -> None:
    examples = list(prepared.train.examples)
    examples[3] = Example([5, 6], [5, IGNORED])
    row = list(prepared.splits.train)[3]
    with pytest.raises(DataError) as refused:
        check_data(replace(prepared, train=Tokenized(examples, [])), job())
    assert refused.value.what == (
        f"{row.where}: no token of this row would be trained: nothing comes before its only one"
    )


def test_an_answer_that_the_template_does_not_end_is_ended_by_the_eos_token(tmp_path) -> None:
    """And not by a special token that it merely holds."""
    tokenizer = make("</think>", template=CHAT_TEMPLATE.replace("<|im_end|>", "").replace("<|im_start|>", "# "))
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "hm</think>yes"} for n in range(4)])
    data = prepared_with(tokenizer, path)
    check_data(data, job())
    assert trained_text(data, 0) == "hm</think>yes</s>"


def trained_text(data: Prepared, at: int) -> str:
    return data.tokenizer.decode([label for label in data.train.examples[at].labels if label != IGNORED])


def test_answers_that_the_template_asks_for_otherwise_are_trained_as_asked_for(tmp_path) -> None:
    """As that of a reasoning model which opens a thought that no trained answer has."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "yes"} for n in range(4)])
    data = prepared_with(tokenizer, path)
    check_data(data, job())
    assert trained_text(data, 0) == "yes<|im_end|>"
    (note,) = data.thinking
    assert note.startswith("thinking is off: the chat template opens a thought and has no switch")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\nSo: {% endif")
    data = prepared_with(tokenizer, path)
    check_data(data, job())
    whole = tokenizer.decode(data.train.examples[0].input_ids)
    assert whole.endswith("<|im_start|>assistant\nSo: yes<|im_end|>\n")
    assert trained_text(data, 0) == "yes<|im_end|>"
    assert data.train.facts == {written.SPLICED: (4, f"{path}:1")}


def test_a_prompt_whose_last_space_joins_the_answer_is_refused(tmp_path) -> None:
    template = CHAT_TEMPLATE.replace("<|im_start|>", "# ").replace("<|im_end|>", "</s>").replace("\n", " ")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "yes"} for n in range(4)])
    check_data(prepared_with(make(template=template), path), job())
    joins = make(template=template, merges=[("Ġ", "y")])
    with pytest.raises(ModelError) as refused:
        prepared_with(joins, path)
    assert refused.value.what == (
        "tiny: the chat template's prompt ends in another token once an answer follows (4 of 4 rows, "
        f"first {path}:1): training and inference prompts would not match"
    )
    write_jsonl(path, [{"prompt": f"{n}", "completion": "yes" if n == 2 else "no"} for n in range(4)])
    check_data(prepared_with(joins, path), job())  # one answer alone begins so


class Shouting(PreTrainedTokenizerFast):
    """Saved, it is its base class, which does not shout."""

    def apply_chat_template(self, messages: Any, **settings: Any) -> Any:
        return super().apply_chat_template(
            [m | {"content": m["content"].upper()} if m["role"] == "user" else m for m in messages], **settings
        )


def test_a_tokenizer_that_saving_changes_is_refused(tmp_path) -> None:
    plain = make_tokenizer()
    shouting = Shouting(
        tokenizer_object=copy.deepcopy(plain.backend_tokenizer),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"why {n}", "completion": "yes"} for n in range(4)])
    with pytest.raises(ModelError, match=r"tiny: its tokenizer reads a prompt otherwise once it was saved and loaded"):
        check_data(prepared_with(shouting, path), job())


def test_a_token_that_was_added_to_the_tokenizer_alone_is_refused(tiny_model, tmp_path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|done|>"})
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", "<|done|>")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "yes"} for n in range(4)])
    data = prepared_with(tokenizer, path)
    check_data(data, job())
    with pytest.raises(ModelError) as refused:
        check_model(build(tiny_model, job(**FP32)), data, job(**FP32))
    assert refused.value.what == (
        "tiny: its tokenizer gives token 259, and the model has 259 embeddings: they do not belong together"
    )


def test_a_token_for_which_the_model_has_zeros_is_refused_unless_it_is_trained_itself(tiny_model, prepared) -> None:
    """As in a vocabulary that was filled up to a round number, where the tokenizer was then given more tokens."""
    for settings in (FP32, FP32 | {"method": "full"}):
        work = job(**settings)
        model = build(tiny_model, work)
        with torch.no_grad():
            model.get_output_embeddings().weight[prepared.tokenizer.eos_token_id] = 0
        if work.recipe.method == "full":
            check_model(model, prepared, work)
            continue
        with pytest.raises(ModelError, match=r"tiny: <\|im_end\|> is a token of the tokenizer, but the model has noth"):
            check_model(model, prepared, work)


def without_positions(model: Any, batch: dict[str, Any], recipe: Recipe) -> torch.Tensor:
    return compute_loss(model, {name: tensor for name, tensor in batch.items() if name != "position_ids"}, recipe)


def shifted_again(model: Any, batch: dict[str, Any], recipe: Recipe) -> torch.Tensor:
    return compute_loss(model, {**batch, "labels": batch["labels"].roll(-1, dims=1)}, recipe)


def without_mask(model: Any, batch: dict[str, Any], recipe: Recipe) -> torch.Tensor:
    return compute_loss(model, {**batch, "labels": batch["input_ids"]}, recipe)


@pytest.mark.parametrize(
    ("fault", "settings"),
    [(shifted_again, FP32), (without_mask, FP32), (shifted_again, QLORA), (shifted_again, INT8 | {"loss": "fused"})],
)
def test_a_loss_that_is_not_the_base_s_is_refused(tiny_model, prepared, monkeypatch, fault, settings) -> None:
    monkeypatch.setitem(OBJECTIVES, "sft", replace(OBJECTIVES["sft"], metrics={"loss": fault}))
    with pytest.raises(
        TrainingError, match=r"before the first step the loss is \S+ as training computes it, and \S+ o"
    ):
        check_model(build(tiny_model, job(**settings)), prepared, job(**settings))


def test_a_loss_that_is_no_number_is_refused(tiny_model, prepared) -> None:
    model = build(tiny_model, job(**FP32))
    with torch.no_grad():
        model.get_input_embeddings().weight *= float("nan")
    with pytest.raises(TrainingError, match="the loss of the base alone is nan"):
        check_model(model, prepared, job(**FP32))


def test_4_bit_kernels_that_are_wrong_are_refused(prepared, tmp_path) -> None:
    """Really wrong ones: rows of a width that bitsandbytes 0.50 multiplies with the scales of other blocks."""
    error = compute.four_bit()["odd_error"]
    if error is not None and error <= compute.TOLERANCE:
        pytest.skip("this bitsandbytes multiplies rows of an odd width right")
    torch.manual_seed(0)
    config = family_config("llama2", vocab_size=259, hidden_size=96, num_hidden_layers=2, intermediate_size=160)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(TrainingError) as refused:
        check_model(build(tmp_path, job(**QLORA)), prepared, job(**QLORA))
    assert "--method lora (`autoft doctor` looks at the quantized kernels)" in str(refused.value)


def test_tokens_that_see_those_after_them_are_refused(tiny_model, prepared) -> None:
    model = build(tiny_model, job())
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(TrainingError, match="tokens see those after them: with another end the loss of an example"):
        check_model(model, prepared, job())


@pytest.mark.parametrize("settings", [PACKED, QLORA | {"packing": True}, PACKED | {"base_dtype": "bfloat16"}])
def test_packed_examples_that_see_each_other_are_refused(tiny_model, prepared, settings) -> None:
    """A model that drops the positions by which its examples are told apart, as OPT's code does."""
    model = build(tiny_model, job(**settings))

    def drop(_module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        return inputs, {name: value for name, value in named.items() if name != "position_ids"}

    without_adapter(model).register_forward_pre_hook(drop, with_kwargs=True)
    with pytest.raises(TrainingError) as refused:
        check_model(model, prepared, job(**settings))
    assert refused.value.what.startswith(
        "packed examples attend to each other: changing the one before it changed an exam"
    )
    assert refused.value.fix == "--set packing=false"


def test_packed_rows_without_positions_are_not_the_base_either(tiny_model, prepared, monkeypatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "sft", replace(OBJECTIVES["sft"], metrics={"loss": without_positions}))
    monkeypatch.setattr(gates, "_neighbours_are_apart", lambda *_: None)
    with pytest.raises(TrainingError, match="before the first step the loss is"):
        check_model(build(tiny_model, job(**PACKED)), prepared, job(**PACKED))
