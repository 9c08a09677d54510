"""Every kind of step, on cards of five generations: it trains, and runs the kernels that it is meant to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cuda.card import FUSED_HEAD, TRITON
from tests.cuda.runs import run

# Optimizers of 8 bits need ranks of 64 here: bitsandbytes keeps the state of fewer than 4,096 weights in 32 bits
FLASH, EFFICIENT_SM75 = "flash_fwd", "fmha_cutlassF_f16_aligned"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """words, settings: of `autoft run`. kernels: parts of names of kernels that it launches; never: of others."""

    card: str
    words: tuple[str, ...] = ("--method", "lora")
    settings: dict[str, Any] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    full: bool = False


KINDS = {
    "LoRA in fp16": Kind(card="t4", settings={"base_dtype": "float16"}, kernels=(EFFICIENT_SM75,), never=(FLASH,)),
    "LoRA, every second layer checkpointed": Kind(
        card="rtx3060",
        settings={"base_dtype": "bfloat16", "gradient_checkpointing": "true", "checkpoint_every": 2},
        kernels=(FLASH,),
    ),
    "QLoRA NF4, paged, offloaded checkpoints": Kind(
        card="rtx4090",
        words=("--method", "qlora"),
        settings={
            "quant_type": "nf4", "double_quant": "true", "optimizer": "paged_adamw_8bit",
            "gradient_checkpointing": "true", "offload_checkpoints": "true", "rank": 64,
        },
        kernels=("kQuantizeBlockwise", "kOptimizerStatic8bit2StateBlockwise"),
    ),
    "QLoRA FP4, 8-bit optimizer": Kind(
        card="a100",
        words=("--method", "qlora"),
        settings={
            "quant_type": "fp4", "double_quant": "false", "optimizer": "adamw_8bit", "kbit_upcast": "true", "rank": 64,
        },
        kernels=("kQuantizeBlockwise", "kOptimizerStatic8bit2StateBlockwise"),
    ),
    "LoRA on an 8-bit base": Kind(
        card="rtx3090", words=("--method", "qlora"), settings={"quant_type": "int8"}, kernels=("kInt8VectorQuant",)
    ),
    "IA3 on a 4-bit base": Kind(
        card="rtx3060",
        words=("--method", "qlora"),
        settings={
            "quant_type": "nf4", "double_quant": "true", "adapter": "ia3", "rank": None, "alpha": None, "dropout": None,
        },
        kernels=("kQuantizeBlockwise",),
    ),
    "LoRA-FA": Kind(card="t4", settings={"freeze_a": "true"}),
    "DoRA, fused optimizer": Kind(
        card="rtx4080",
        settings={"use_dora": "true", "optimizer": "adamw_torch_fused"},
        kernels=("FusedAdamMathFunctor",),
    ),
    "full fine-tuning": Kind(
        card="a100", words=("--method", "full"), settings={"base_dtype": "bfloat16"}, full=True, kernels=(FLASH,)
    ),
    "full fine-tuning with Adafactor": Kind(
        card="rtx3060", words=("--method", "full"), settings={"optimizer": "adafactor"}, full=True
    ),
    "full fine-tuning under autocast": Kind(
        card="t4",
        words=("--method", "full"),
        settings={"base_dtype": "float16", "autocast": "true", "gradient_checkpointing": "true"},
        full=True,
        kernels=("unscale",),
    ),
    "packing": Kind(card="h100", settings={"packing": "true", "seq_len": 128, "loss": "selected", "micro_batch": 2}),
    "eager attention": Kind(card="rtx5090", settings={"attention": "eager"}, never=(FLASH, "fmha_cutlass")),
    "rsLoRA in fp32": Kind(
        card="rtx3060", settings={"base_dtype": "float32", "use_rslora": "true"}, kernels=("fmha_cutlassF_f32",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_it_trains(on_card, tiny_model, data_file, tmp_path, name):
    kind = KINDS[name]
    card = on_card(kind.card, truth=True)
    done = card.warm(*run(tiny_model, data_file, tmp_path / "out", *kind.words, full=kind.full, **kind.settings))
    assert done.code == 0, done.err
    result = done.json
    assert result["job"]["device"] == "cuda"
    assert result["after"]["loss"] < result["before"]["loss"]
    assert 0 < result["measured"]["peak_bytes"] <= result["measured"]["peak_reserved_bytes"]
    launched = card.kernels()
    assert [part for part in kind.kernels if not any(part in kernel for kernel in launched)] == []
    assert [part for part in kind.never if any(part in kernel for kernel in launched)] == []
    assert [event.what for event in done.events if event.what == "forked"] == []


def test_the_fused_head_is_triton_s_and_its_logits_are_never_built(on_card, tiny_model, data_file, tmp_path):
    card = on_card("rtx4090", truth=True, ignore=(TRITON, FUSED_HEAD))
    done = card(*run(tiny_model, data_file, tmp_path / "out", loss="fused", max_steps=1))
    assert done.code == 0, done.err
    assert done.json["job"]["recipe"]["loss"] == "fused"
    assert any("_kernel" in name for name in card.kernels())


def test_experts_in_4_bits_are_trained_and_asked(on_card, data_file, tmp_path):
    from tests.trainer.test_router_loss import save_mixture

    model = save_mixture(tmp_path / "mixture", balance=0.0)
    card = on_card("a100", truth=True)
    words = ("--method", "qlora")
    settings = {"experts_4bit": "true", "quant_type": "nf4", "attention": "eager"}
    done = card.warm(*run(model, data_file, tmp_path / "out", *words, **settings))
    assert done.code == 0, done.err
    assert done.json["after"]["generated_rows"] > 0
    assert done.json["steps"] == 4


@pytest.mark.parametrize("card", ["t4", "rtx4090"])
def test_flash_attention_2_is_refused_where_it_is_not_installed_or_cannot_run(
    on_card, tiny_model, data_file, tmp_path, card
):
    words = run(tiny_model, data_file, tmp_path / "out", attention="flash_attention_2")
    done = on_card(card, truth=True).warm(*words)
    assert done.code == 2, done.err
    line = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    assert "flash_attention_2 needs" in line
    assert "To fix: " in done.err


def test_a_plan_file_runs_on_the_card_it_is_for_and_history_tells_of_it(on_card, tiny_model, data_file, tmp_path):
    card, plan = on_card("rtx3060", truth=True), tmp_path / "plan.toml"
    planned = card.warm("plan", *run(tiny_model, data_file, plan, max_steps=2)[1:])
    assert planned.code == 0, planned.err
    assert planned.contexts == []
    done = card.warm("run", plan, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert (done.json["job"]["device"], done.json["steps"]) == ("cuda", 2)
    shown = card.warm("history")
    assert shown.code == 0, shown.err
    assert "RTX 3060" in shown.out
    cleared = card.warm("history", "--clear", "--yes", "--device", "3060")
    assert cleared.code == 0, cleared.err
