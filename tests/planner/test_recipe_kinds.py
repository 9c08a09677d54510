"""Rehearsals of further kinds of recipes against real steps on the CPU, and what must hold of them on a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft.errors import ModelError
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of
from autoft.planner.kernels.rules import Device
from autoft.planner.memory.allocator import Allocator
from autoft.planner.memory.host import disk_parts, host_parts, totals
from autoft.planner.memory.replay import replay
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.planner.tracing.trace import KIND
from autoft.profiles.hardware import Hardware
from autoft.trainer.recipe import Recipe
from autoft.trainer.storage.run_folder import output_bytes
from tests.planner.families import family_config
from tests.planner.test_rehearsal import HOST

WITHIN_PERCENT = 0.5
AMPERE = Device((8, 6))
BASE: dict[str, Any] = {"autocast": True, "loss": "fused", "micro_batch": 2, "seq_len": 96, "rank": 4}
# 12 layers, 4 heads over 2 key heads of 16, 64 wide
CONFIG = family_config("llama3")

SHORT = {"micro_batch": 2, "seq_len": 128, "rank": 8}
FLOAT32 = SHORT | {"base_dtype": "float32", "loss": "selected"}
AUTOCAST = SHORT | {"autocast": True, "loss": "logits"}
NF4 = SHORT | {"method": "qlora", "quant_type": "nf4", "autocast": True, "loss": "fused"}
CHECKPOINTED = {"gradient_checkpointing": True}
DORA = {"use_dora": True, "use_rslora": True}
IA3 = {"adapter": "ia3", "micro_batch": 2, "seq_len": 128}
OFT = {"adapter": "oft", "micro_batch": 2, "seq_len": 128}
PROMPT = {"adapter": "prompt", "virtual_tokens": 24, "micro_batch": 2, "seq_len": 128}
FULL = {"method": "full", "micro_batch": 2, "seq_len": 128}
# of 2,048 rows: the first two are there, the third is added; or all are there
GROWN = {"new_tokens": ("<a>", "<b>", "<c>"), "first_new_id": 2046}
PADDED = {"new_tokens": ("<a>", "<b>"), "first_new_id": 2040}

SHAPES = {"mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}, "qwen2": {"tie_word_embeddings": True}}
# name -> (family, settings)
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "dora-autocast-checkpointed": ("llama", AUTOCAST | DORA | CHECKPOINTED),
    "every-second-layer-float32": ("llama", FLOAT32 | CHECKPOINTED | {"checkpoint_every": 2}),
    "fused-optimizer": ("llama", FLOAT32 | {"optimizer": "adamw_torch_fused"}),
    "dora-nf4-double": ("llama", NF4 | DORA | {"double_quant": True}),
    "full-autocast-every-second-layer": (
        "qwen2",
        FULL | CHECKPOINTED | {"autocast": True, "loss": "logits", "checkpoint_every": 2},
    ),
    "full-bfloat16-8-bit-optimizer": ("llama", FULL | {"loss": "fused", "optimizer": "adamw_8bit"}),
    "full-bfloat16-adafactor": ("llama", FULL | {"loss": "fused", "optimizer": "adafactor"}),
    "adafactor-float32": ("llama", FLOAT32 | {"optimizer": "adafactor"}),
    "lora-fa-autocast": ("llama", AUTOCAST | {"freeze_a": True}),
    "lora-fa-nf4-dropout": ("qwen2", NF4 | {"freeze_a": True, "dropout": 0.1, "optimizer": "adamw_torch"}),
    "lora-plus-dora-autocast": ("llama", AUTOCAST | {"lora_plus_ratio": 16, "use_dora": True}),
    "pissa-autocast": ("llama", AUTOCAST | {"init": "pissa"}),
    "olora-checkpointed-dropout": ("qwen2", AUTOCAST | CHECKPOINTED | {"init": "olora", "dropout": 0.1}),
    "pissa-lora-fa-float32": ("llama", FLOAT32 | {"init": "pissa_niter_4", "freeze_a": True}),
    "ia3-autocast-checkpointed": ("llama", IA3 | {"autocast": True, "loss": "logits"} | CHECKPOINTED),
    "oft-autocast-checkpointed": ("llama", OFT | {"autocast": True, "loss": "logits"} | CHECKPOINTED),
    "oft-nf4": ("qwen2", OFT | {"method": "qlora", "quant_type": "nf4", "autocast": True, "loss": "fused"}),
    "oft-int8-blocks-of-64": ("llama", OFT | {"method": "qlora", "quant_type": "int8", "oft_block_size": 64}),
    "new-tokens-grown-float32": ("llama", FLOAT32 | GROWN),
    "new-tokens-grown-tied-fused-checkpointed": ("qwen2", AUTOCAST | GROWN | CHECKPOINTED | {"loss": "fused"}),
    "new-tokens-padded-nf4-upcast": ("qwen2", NF4 | PADDED | {"kbit_upcast": True, "double_quant": True}),
    "new-tokens-grown-nf4-dora": ("llama", NF4 | GROWN | {"use_dora": True, "loss": "selected"}),
    "prompt-float32-selected": ("llama", PROMPT | {"base_dtype": "float32", "loss": "selected"}),
    "prompt-autocast-fused-checkpointed": ("qwen2", PROMPT | {"autocast": True, "loss": "fused"} | CHECKPOINTED),
    "prompt-nf4-logits": ("llama", PROMPT | {"method": "qlora", "quant_type": "nf4", "loss": "logits"}),
    "ia3-nf4": ("qwen2", IA3 | {"method": "qlora", "quant_type": "nf4", "autocast": True, "loss": "fused"}),
    "dft-fused-checkpointed": ("llama", SHORT | {"objective": "dft", "autocast": True, "loss": "fused"} | CHECKPOINTED),
    "dft-nf4-selected": ("qwen2", NF4 | {"objective": "dft", "loss": "selected"}),
    "full-experts": ("mixtral", FULL | {"base_dtype": "float32", "loss": "selected"}),
}


@pytest.fixture(scope="module")
def cpu_memory():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("cpu_memory")


@pytest.mark.parametrize("name", REAL)
def test_every_peak_of_a_real_run_is_met(cpu_memory, name) -> None:
    family, settings = REAL[name]
    shape = cpu_memory.GROUPED | SHAPES.get(family, {})
    row = cpu_memory.compared(cpu_memory.Case(family, shape, settings), steps=2)
    off = {phase: figures["error_percent"] for phase, figures in row["phases"].items()}
    assert max(map(abs, off.values())) <= WITHIN_PERCENT, off


def run(*, config: Any = CONFIG, depth: bool = True, **settings: Any) -> Rehearsal:
    has_rank = settings.get("method") != "full" and settings.get("adapter", "lora") == "lora"
    base = BASE if has_rank else {"micro_batch": 2, "seq_len": 96}
    recipe = Recipe(**base | settings)
    return rehearse(recipe, config, AMPERE, depth=find_depth(recipe, config) if depth else None)


def allocated(rehearsal: Rehearsal) -> int:
    return replay(rehearsal, Allocator()).allocated


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama3", DORA | CHECKPOINTED),
        ("llama3", CHECKPOINTED | {"checkpoint_every": 2}),
        ("llama3", CHECKPOINTED | {"checkpoint_every": 3, "offload_checkpoints": True}),
        ("llama3", {"init": "pissa"} | CHECKPOINTED),
        ("qwen3_moe", {"init": "olora", "lora_plus_ratio": 4.0}),
        ("llama3", {"adapter": "oft", "oft_block_size": 16}),
        ("llama3", {"method": "full", "autocast": True}),
        ("qwen3_moe", CHECKPOINTED | {"method": "full"}),
        ("gemma3", CHECKPOINTED | {"checkpoint_every": 2}),  # whose windows come in a period of their own, of six
    ],
    ids=str,
)
def test_a_few_layers_stand_for_all(family, settings) -> None:
    config = family_config(family, num_hidden_layers=24 if family == "gemma3" else 12)
    short, full = (run(config=config, **settings, depth=depth) for depth in (True, False))
    assert allocated(short) == allocated(full)
    assert [len(phase.events) for phase in short.phases] == [len(phase.events) for phase in full.phases]
    assert short.work == full.work
    assert short.offloaded_bytes == full.offloaded_bytes


def test_a_period_of_checkpoints_is_short_and_repeats() -> None:
    plain = find_depth(Recipe(), CONFIG)
    assert plain is not None
    assert (plain.rehearsed, plain.stands_for) == (4, (0, 1, *[2] * 9, 3))
    third = plain.alternating(3)  # layers 0, 3, 6, 9 are checkpointed
    assert (third.rehearsed, third.stands_for) == (6, (0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5))


def test_the_fewer_layers_are_checkpointed_the_more_memory_and_the_less_work() -> None:
    every = [run(**CHECKPOINTED, checkpoint_every=k) for k in (1, 2, 3, 12)]
    taken = [allocated(r) for r in (*every, run())]
    assert taken == sorted(set(taken))
    work = [sum(r.work.values()) for r in (*every, run())]
    assert work == sorted(set(work), reverse=True)


def test_first_values_from_weights_pass_in_the_host_s_memory_and_not_on_the_card() -> None:
    plain, pissa = run(), run(init="pissa")
    assert pissa.trainable_params == plain.trainable_params
    assert pissa.written_params == 2 * plain.written_params
    # gate's 160 x 64 weights in float32, the copy that is decomposed, both sides and the values
    assert pissa.decomposed_bytes == 4 * (2 * 160 * 64 + 160 * 64 + 64 + 64 * 64)
    assert (plain.decomposed_bytes, run(init="olora", base_dtype="float32", autocast=False).decomposed_bytes) == (
        0,
        4 * 2 * 4 * (160 + 64),
    )
    load = host_parts(pissa, PARAMS)["load"]
    assert load["the decomposition of the largest layer, float32"] == pissa.decomposed_bytes
    made = {size for _, size in pissa.phases[0].events.tolist()}
    assert 4 * 160 * 64 not in made
    on_cpu = rehearse(Recipe(**BASE, init="pissa"), CONFIG, Device(None), depth=None)
    assert 4 * 160 * 64 in {size for _, size in on_cpu.phases[0].events.tolist()}


def test_lora_plus_updates_one_group_after_the_other() -> None:
    plain, plus = run(rank=64), run(rank=64, lora_plus_ratio=16)
    (one,), (two,) = (
        [phase.events for phase in each.phases[each.steady :] if phase.name == "optimizer"] for each in (plain, plus)
    )
    assert two[:, 1].cumsum().max() < one[:, 1].cumsum().max()
    assert plus.trainable_params == plain.trainable_params


def test_dora_trains_a_length_a_row_and_builds_each_updated_weight() -> None:
    lora, dora = run(), run(**DORA)
    rows_a_layer = 64 + 32 + 32 + 64 + 160 + 160 + 64
    assert dora.trainable_params - lora.trainable_params == 12 * rows_a_layer
    # the lengths of 160 rows of gate and up: twice a layer and step, in float32 under autocast
    norm = torch.ops.aten.linalg_vector_norm.default
    assert sum(made == (norm, (160,), torch.float32) for made in dora.made.values()) == 2 * 12 * 2
    # while loading, the update, that scaled and the sum of both weights pass before its lengths are there
    load = [int(size) for _, size in dora.phases[0].events]
    weight = 2 * 160 * 64
    passing = [*[weight] * 3, -weight, 2 * 160, *[-weight] * 2]
    assert sum(load[i : i + len(passing)] == passing for i in range(len(load))) == 2 * 12


def test_the_fused_optimizer_makes_no_copies_of_weights() -> None:
    plain, fused = (run(optimizer=name, rank=64) for name in ("adamw_torch", "adamw_torch_fused"))
    above = []  # the optimizer's peak over what it begins and ends with, in bytes a trained weight
    for rehearsal in (plain, fused):
        (events,) = [phase.events for phase in rehearsal.phases[rehearsal.steady :] if phase.name == "optimizer"]
        above.append(events[:, 1].cumsum().max() / rehearsal.trainable_params)
    assert above[0] >= 4
    assert above[1] < 0.1  # the norms of the gradients


def test_dora_over_experts_that_are_named_is_refused() -> None:
    config = family_config("qwen3_moe")
    recipe = Recipe(**BASE, use_dora=True, target_modules=("gate_proj", "up_proj", "down_proj"))
    with pytest.raises(ModelError, match=r"target_modules .* does not work with use_dora=True") as refused:
        rehearse(recipe, config, AMPERE, depth=None)
    assert refused.value.fix == "--set target_modules=all-linear"


def test_the_command_line_estimates_them_and_refuses_in_one_line(autoft, tiny_model) -> None:
    words = ("estimate", tiny_model, "--gpu", "rtx3090", "--set", "use_dora=true", "--json")
    assert autoft(*words, "--set", "use_rslora=true", "--set", "optimizer=adamw_torch_fused").code == 0
    refused = autoft(*words, "--method", "qlora", "--set", "quant_type=int8")
    assert refused.code == 2
    assert "--set: use_dora needs a base in 16 or 4 bits: PEFT loses the scales of 8-bit weights" in refused.err


def test_dora_unpacks_a_weight_to_the_dtype_it_was_loaded_in() -> None:
    found = run(**DORA, method="qlora", quant_type="nf4")
    unpacked = [made for made in found.made.values() if str(made[0]) == "bitsandbytes.dequantize_4bit.default"]
    assert {dtype for _, _, dtype in unpacked} == {torch.bfloat16}


# of the small model: 12 layers of q, k, v, o, gate, up, down and two norms, a norm, embedding and head
PARAMS = 12 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160 + 2 * 64) + 64 + 2 * 500 * 64


@pytest.mark.parametrize(
    ("settings", "weights", "optimizer"),
    [
        ({}, 2, 4),
        ({"autocast": True}, 4, 8),
        ({"base_dtype": "float32", "optimizer": "adamw_torch_fused"}, 4, 8),
        ({"optimizer": "adamw_8bit"}, 2, 2),
    ],
    ids=str,
)
def test_full_holds_weights_gradients_and_states_of_all(settings, weights, optimizer) -> None:
    """In bytes a weight; states have a count of steps beside them."""
    found = run(method="full", **settings)
    assert found.trainable_params == found.total_params == PARAMS
    held = replay(found, Allocator()).components
    assert held["weights"] == pytest.approx(weights * PARAMS, rel=0.001)
    assert "adapter" not in held
    first = next(phase for phase in found.phases if phase.name == "optimizer")
    states = sum(size for key, size in first.events if found.kinds[key] == KIND["optimizer"])
    many = 1.4 if settings.get("optimizer") == "adamw_8bit" else 1.03  # codes for each weight, and 32 bits below 4,096
    assert optimizer * PARAMS <= states <= many * optimizer * PARAMS
    gradients = sum(-size for key, size in first.events if found.kinds[key] == KIND["gradients"])
    assert gradients == weights * PARAMS


def test_an_update_in_bfloat16_peaks_at_10_bytes_a_weight_and_at_8_when_fused() -> None:
    """Weights 2, gradients 2, states 4; and copies of 2, as others have measured, that the fused kernel spares."""
    for optimizer, bytes_each in (("adamw_torch", 10), ("adamw_torch_fused", 8)):
        found = run(method="full", optimizer=optimizer)
        peak = replay(found, Allocator()).phases["optimizer"] - 2 * AMPERE.cublas_workspace_bytes
        assert peak == pytest.approx(bytes_each * PARAMS, rel=0.05)


def test_loading_for_full_begins_with_a_block_in_the_weights_own_dtype() -> None:
    for settings, bytes_each in (({}, 2), ({"autocast": True}, 4)):
        sizes = run(method="full", **settings).phases[0].events[:, 1]
        assert sizes[0] == -sizes[1] == bytes_each * PARAMS
        assert sizes.sum() == pytest.approx(bytes_each * PARAMS, rel=0.001)  # and the frequencies of the positions


def test_a_full_model_is_saved_whole_and_never_merged() -> None:
    found = run(method="full")
    assert host_parts(found, PARAMS)["save"]["the model"] == 2 * PARAMS
    disk = totals(disk_parts(found, PARAMS))
    assert disk.keys() == {"load", "save"}
    assert 2 * PARAMS < disk["save"] == output_bytes(PARAMS, bytes_each=2)


def test_many_tokens_are_sorted_before_their_embedding_learns() -> None:
    """aten/native/cuda/Embedding.cu: above 3,072 tokens, with a float32 sum for ten of a word."""
    sums = ((4096 // 10 + 500) * 64 * 4, "embedding_dense_backward")

    def taken(seq_len: int) -> bool:
        found = run(method="full", seq_len=seq_len)
        return sums in {
            (size, str(found.made[key][0]).split(".")[1])
            for phase in found.phases
            for key, size in phase.events.tolist()
            if size == sums[0] and key in found.made and found.made[key][1] is None
        }

    assert taken(2048)
    assert not taken(1024)


def test_all_weights_of_a_small_model_are_trained_and_counted_once() -> None:
    hardware = Hardware(host=HOST, no_gpu_reason="none")
    estimator = Estimator(
        "small", CONFIG, target_of(hardware, gpu_name="rtx4090", vram_gib=None, cpu_flops_per_s=lambda *_: 1e11)
    )
    estimate = estimator.estimate(Recipe(method="full", micro_batch=1, seq_len=64))
    assert (estimate.trainable_params, estimate.total_params) == (PARAMS, PARAMS)
    assert sum(estimate.components.values()) == estimate.peak_allocated_bytes
