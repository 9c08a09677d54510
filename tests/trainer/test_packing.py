"""Examples that share a row: as many rows as that needs, and the loss and gradients of the examples alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from autoft.errors import ModelError
from autoft.trainer.data.tokens import Example
from autoft.trainer.loop.rows import ROWS, batch_maker, split
from autoft.trainer.model.build import build_model
from autoft.trainer.objectives.loss import IGNORED, compute_loss
from autoft.trainer.objectives.packing import collate_packed, pack, packed_row
from autoft.trainer.recipe import Recipe
from tests.planner.families import FAMILIES, family_config

SETTINGS = {"base_dtype": "float32", "loss": "selected", "packing": True, "micro_batch": 2, "seq_len": 48}
# Full, sliding and chunked attention, learned positions, experts
TELL_APART = ("llama3", "llama4", "mistral", "qwen3_moe", "deepseek_v2", "gemma3", "phi2", "pythia", "gpt2", "cohere2")


def test_the_longest_come_first_each_into_the_fullest_row_with_room() -> None:
    assert pack([3, 7, 5, 5, 4, 6], 10) == [[1, 0], [5, 4], [2, 3]]
    assert pack([10, 10], 10) == [[0], [1]]
    assert pack([], 10) == []


def test_a_packed_row_restarts_positions_and_learns_nothing_across_examples() -> None:
    row = packed_row([Example([5, 6, 7], [5, 6, 7]), Example([8, 9], [IGNORED, 9])], 8, pad_id=0)
    assert row == {
        "input_ids": [5, 6, 7, 8, 9, 0, 0, 0],
        "labels": [IGNORED, 6, 7, IGNORED, 9, IGNORED, IGNORED, IGNORED],
        "position_ids": [0, 1, 2, 0, 1, 0, 1, 2],
        "attention_mask": [1, 1, 1, 1, 1, 0, 0, 0],
    }


def test_flash_attention_takes_the_rows_end_to_end() -> None:
    rows = [packed_row([Example([5, 6], [5, 6])], 3, 0), packed_row([Example([7], [7]), Example([8], [8])], 3, 0)]
    batch = collate_packed(rows, Recipe(packing=True, attention="flash_attention_2", seq_len=3))
    assert batch["input_ids"].tolist() == [[5, 6, 0, 7, 8, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 0, 0]]
    # transformers finds in them where each begins, padding and single tokens included
    (starts, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    assert starts.tolist() == [0, 2, 3, 4, 5, 6]
    assert longest == 2


def examples(vocabulary: int) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in (31, 11, 1, 17, 26):
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        found.append(Example(ids, [IGNORED] * (length // 3) + ids[length // 3 :]))
    return found


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_row_is_cut_between_its_examples_never_within_one(attention) -> None:
    recipe = Recipe(packing=True, attention=attention, seq_len=48)
    of_rows = [examples(100)[:3], examples(100)[3:]]
    rows = [{**packed_row(row, 48, pad_id=0), ROWS: number} for number, row in enumerate(of_rows)]
    batch = batch_maker(recipe, 0)(rows)
    for most, tokens in ((48, [43, 43]), (32, [31, 12, 17, 26]), (8, [31, 11, 1, 17, 26])):
        parts = split(batch, 1, most)
        found = [part["attention_mask"][0].bool() for part in parts]
        assert [int(real.sum()) for real in found] == tokens
        for name in ("input_ids", "labels", "position_ids"):
            told = [part[name][0][real].tolist() for part, real in zip(parts, found, strict=True)]
            assert [value for part in told for value in part] == [
                value for row in rows for value in row[name][: sum(row["attention_mask"])]
            ]
        assert all((part["labels"][0][~real] == IGNORED).all() for part, real in zip(parts, found, strict=True))
        assert {part[ROWS].item() for part in parts} == {0, 1}
    assert len(split(batch, 2, 8)) == 1  # of several rows none is cut


def losses_and_gradients(model, batches, recipe, trained):
    model.zero_grad()
    total = sum(compute_loss(model, batch, recipe, num_trained_tokens=trained) for batch in batches)
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    ("family", "loss"), [*((family, "selected") for family in TELL_APART), ("llama3", "logits"), ("llama3", "fused")]
)
def test_packed_rows_learn_what_their_examples_do_alone(family, loss, tmp_path) -> None:
    layers = "n_layer" if "n_layer" in FAMILIES[family][1] else "num_hidden_layers"
    config = family_config(family, **{layers: 7 if family == "gemma3" else 4})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    recipe = Recipe(**SETTINGS | {"loss": loss})
    model = build_model(recipe, config=config, weights=tmp_path, device="cpu").eval()  # GPT-2's own dropout
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros, through which lora_A gets no gradient
            torch.nn.init.normal_(parameter, std=0.05)
    alone = examples(config.vocab_size)
    trained = sum(label != IGNORED for example in alone for label in example.labels[1:])
    rows = pack([len(e.input_ids) for e in alone], recipe.seq_len)
    assert len(rows) == 2
    packed = collate_packed([packed_row([alone[i] for i in row], recipe.seq_len, 0) for row in rows], recipe)
    apart = [
        {"input_ids": torch.tensor([e.input_ids]), "labels": torch.tensor([e.labels])}
        for e in alone
        if len(e.input_ids) > 1
    ]
    assert int((packed["labels"][:, 1:] != IGNORED).sum()) == trained
    together = losses_and_gradients(model, [packed], recipe, trained)
    torch.testing.assert_close(together, losses_and_gradients(model, apart, recipe, trained), rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().sum() > 0 for gradient in together[1].values())


def test_rows_end_to_end_learn_the_same(tiny_model) -> None:
    """As for FlashAttention-2, but computed with a mask."""
    recipe = Recipe(**SETTINGS)
    config = AutoConfig.from_pretrained(tiny_model)
    model = build_model(recipe, config=config, weights=tiny_model, device="cpu")
    alone = examples(config.vocab_size)
    rows = [packed_row([alone[i] for i in row], 48, 0) for row in pack([len(e.input_ids) for e in alone], 48)]
    batches = [
        collate_packed(rows, r) for r in (recipe, Recipe(attention="flash_attention_2", packing=True, seq_len=48))
    ]
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 48), (1, 96)]
    stacked, end_to_end = (losses_and_gradients(model, [batch], recipe, None) for batch in batches)
    torch.testing.assert_close(end_to_end, stacked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "name"),
    [("bloom", "Bloom"), ("qwen3_next", "Qwen3Next"), ("opt", "OPT"), ("falcon7b", "Falcon"), ("gpt_oss", "GptOss")],
)
def test_a_model_whose_examples_would_see_each_other_is_refused(family, name) -> None:
    config = family_config(family)
    attention = "eager" if family in ("bloom", "gpt_oss") else "sdpa"
    with pytest.raises(ModelError) as refused:
        build_model(Recipe(**SETTINGS, attention=attention), config=config, weights=None, device="meta")
    assert str(refused.value) == (
        f"{name}ForCausalLM cannot tell packed examples apart: they would see each other\nTo fix: leave packing out"
    )
