"""A mixture of experts is trained on cross entropy alone: TRL would add a loss that balances the experts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, MixtralConfig, MixtralForCausalLM

from autoft.trainer.job import Job
from autoft.trainer.model.build import build_base
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.session import run
from tests.conftest import make_tokenizer


def save_mixture(folder, *, balance: float):
    """A tiny Mixtral whose own configuration asks for the balancing loss. balance: what that loss is multiplied by."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, max_position_embeddings=512, output_router_logits=True,
        router_aux_loss_coef=balance, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model, data_file, out, **recipe):
    settings = {"base_dtype": "float32", "seq_len": 64, "micro_batch": 4, "dropout": 0.0, **recipe}
    job = Job(model=str(model), data=str(data_file), recipe=Recipe(**settings), max_steps=2, eval_rows=4,
              max_new_tokens=4)  # fmt: skip
    return run(job, out, plan_toml="")


@pytest.mark.parametrize("loss", ["fused", "logits"])
def test_the_experts_balance_is_no_part_of_the_loss(data_file, tmp_path, loss) -> None:
    results = [
        train(
            save_mixture(tmp_path / f"model{balance}", balance=balance),
            data_file,
            tmp_path / f"out{balance}",
            loss=loss,
        )
        for balance in (0.0, 100.0)
    ]
    assert results[0].losses == results[1].losses
    assert results[0].after is not None  # answers were generated


def test_a_fully_trained_mixture_keeps_its_coefficient(data_file, tmp_path) -> None:
    train(save_mixture(tmp_path / "model", balance=0.02), data_file, tmp_path / "out", method="full", loss="selected")
    assert AutoConfig.from_pretrained(tmp_path / "out").router_aux_loss_coef == 0.02


def test_a_ghost_returns_no_router_logits_either(tmp_path) -> None:
    config = AutoConfig.from_pretrained(save_mixture(tmp_path / "model", balance=0.02))
    assert build_base(Recipe(), config).config.output_router_logits is False
