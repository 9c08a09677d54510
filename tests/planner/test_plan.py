"""The plan: candidates, the choice and its reasons, pins, and the file that carries it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import Qwen3MoeConfig

from autoft.errors import DoesNotFit, FileFormatError, OptionError
from autoft.planner.estimator.target import Target, target_of
from autoft.planner.plan.exact import make_estimate
from autoft.planner.plan.make import ask, make_plan
from autoft.planner.plan.record import Plan, read_plan, write_plan
from autoft.planner.request import Request
from autoft.planner.search import remedies
from autoft.planner.search.candidates import exact, families
from autoft.planner.search.rank import PREFERENCES, choose
from autoft.planner.search.search import Candidate
from autoft.planner.search.set_option import parse_settings
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.profiles.hardware import GpuProcess, GpuStatus, Hardware
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.recipe import PAD_MULTIPLE, Recipe
from autoft.units import GIB
from tests.support.machines import HOST
from tests.support.machines import NO_GPU as CPU
from tests.support.plans import plan_of

SHAPE = ModelShape(
    name="m", model_type="llama", num_layers=2, hidden_size=64, intermediate_size=128, num_heads=4, num_kv_heads=2,
    head_dim=16, vocab_size=1000, max_position=4096, tied_embeddings=True, linear_params=64 * 1024, other_params=64_064,
)  # fmt: skip
TINYLLAMA = "tinyllama-1.1b-chat-v1.0"


def target(gpu=None, vram=None, hardware=CPU):
    return target_of(hardware, gpu_name=gpu, vram_gib=vram, cpu_flops_per_s=lambda dtype, shape: 1e11)


def candidates(*args: Any, **words: Any) -> list[Recipe]:
    return [recipe for family in families(*args, **words) for recipe in family.recipes]


def test_candidates_are_legal_distinct_and_by_the_device_s_ability() -> None:
    on_cpu = candidates(target(), seq_len=64, rows_per_step=4, pinned={})
    assert len(on_cpu) == len(set(on_cpu)) == 3 * 3 * 3  # bases, savings, micro-batches
    assert {r.micro_batch for r in on_cpu} == {4, 2, 1}
    assert {r.base_dtype for r in on_cpu} == {"bfloat16"}
    on_t4 = candidates(target("t4"), seq_len=64, rows_per_step=1, pinned={})
    assert {r.base_dtype for r in on_t4} == {"float16"}
    assert {r.adapter_dtype for r in on_t4} == {"float32"}
    old = target(hardware=Hardware(host=replace(HOST, bf16=False)))
    assert {(r.base_dtype, r.autocast) for r in candidates(old, seq_len=8, rows_per_step=1, pinned={})} == {
        ("float32", False)
    }


def test_pins_hold_in_every_candidate() -> None:
    found = candidates(target(), seq_len=64, rows_per_step=4, pinned={"rank": 3, "method": "qlora", "micro_batch": 2})
    assert {(r.rank, r.method, r.micro_batch) for r in found} == {(3, "qlora", 2)}
    assert {r.gradient_checkpointing for r in found} == {False, True}


def test_an_exact_recipe_is_what_was_said_and_the_device_s_default() -> None:
    card = target("rtx-4090")
    assert exact(card, seq_len=64, pinned={}) == Recipe(
        seq_len=64, micro_batch=1, autocast=True, optimizer="adamw_torch_fused"
    )
    checkpointed = exact(card, seq_len=64, pinned={"gradient_checkpointing": True})
    assert (checkpointed.checkpoint_every, checkpointed.offload_checkpoints) == (1, False)
    assert exact(card, seq_len=64, pinned={"checkpoint_every": 3}).gradient_checkpointing
    assert exact(card, seq_len=64, pinned={"offload_checkpoints": True}).gradient_checkpointing
    assert exact(card, seq_len=64, pinned={"quant_type": "int8"}).method == "qlora"
    assert exact(card, seq_len=64, pinned={"method": "full"}).weights_dtype == "float32"
    with pytest.raises(FileFormatError, match="needs a quant_type"):
        exact(card, seq_len=64, pinned={"method": "lora", "double_quant": True})


def test_a_setting_that_is_right_only_beside_another_can_be_pinned() -> None:
    assert parse_settings(("experts_4bit=true",)) == ({"experts_4bit": True}, {})
    for words in ("report_to=wandb, mlflow", 'report_to=["wandb", "mlflow"]'):
        assert parse_settings((words,)) == ({}, {"report_to": ("wandb", "mlflow")})


def test_settings_are_read_as_toml_else_text() -> None:
    words = (
        "rank=8",
        "learning_rate=1e-4",
        'target_modules=["q_proj"]',
        "attention=eager",
        "gradient_checkpointing=true",
    )
    assert parse_settings(words) == (
        {"rank": 8, "target_modules": ("q_proj",), "attention": "eager", "gradient_checkpointing": True},
        {"learning_rate": 1e-4},
    )
    with pytest.raises(OptionError, match=r"no setting 'rnk'\. Did you mean rank"):
        parse_settings(("rnk=8",))
    with pytest.raises(OptionError, match="not of the form key=value"):
        parse_settings(("rank",))


@pytest.mark.parametrize("spelling", ["t4", "T4", "t4x1", "Tesla T4"])
def test_a_card_may_be_named_in_several_ways(spelling: str) -> None:
    assert target(spelling).gpu == gpu_from_profile("t4")


@pytest.mark.parametrize(("spelling", "count"), [("t4x2", 2), ("2x t4", 2), ("T4 x4", 4), ("t4,t4,t4", 3), ("t4x1", 1)])
def test_several_cards_may_be_named(spelling: str, count: int) -> None:
    found = target(spelling)
    assert found.gpus == (gpu_from_profile("t4"),) * count
    assert found.name == target("t4").name
    assert found.using(count).available_bytes == target("t4").available_bytes


def test_replicas_want_cards_of_one_kind() -> None:
    for words, what, fix in (
        ("4090,3060", "all GPUs of a run must be of one kind", "--gpu 4090 or --gpu 3060"),
        ("t4x0", "no card at all", "--gpu t4, or --gpu cpu"),
    ):
        with pytest.raises(OptionError) as error:
            target(words)
        assert str(error.value) == f"--gpu {words}: {what}\nTo fix: {fix}"


def test_two_cards_of_one_name_are_told_apart_by_their_memory() -> None:
    for name in ("rtx-3080", "rtx-3080-12gb"):
        here = replace(gpu_from_profile(name), origin="nvml", profile=None, memory_bytes_per_s=None)
        found = target(hardware=Hardware(host=HOST, gpus=(here,))).gpu
        assert found is not None
        assert found.profile == name
        assert found.memory_bytes_per_s == gpu_from_profile(name).memory_bytes_per_s


def test_what_is_taken_for_granted_of_unusual_cards_is_said() -> None:
    assert any("on AMD cards nothing was measured" in note.text for note in target("mi300x").assumptions)
    shared = target("dgx-spark")
    assert any("shared with the host; 85% is assumed to be free" in note.text for note in shared.assumptions)
    assert shared.available_bytes < 0.85 * 120 * GIB
    assert len(target("rtx-4090").assumptions) == 2


def test_the_gpu_with_the_most_free_memory_is_taken() -> None:
    small, big = (replace(gpu_from_profile(name), origin="nvml") for name in ("rtx-3060", "rtx-3090"))
    assert "3090" in target(hardware=Hardware(host=HOST, gpus=(small, big))).name


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_each_preference_takes_something_that_fits(wide_shape, prefer: str) -> None:
    plan = plan_of(Request(model=wide_shape, gpu="rtx-4090", seq_len=512, prefer=prefer))
    assert plan.estimate.fits == "yes"
    others = [a.estimate for a in plan.alternatives if a.estimate.fits == "yes"]
    if prefer == "memory":
        assert plan.estimate.device_bytes <= min(e.device_bytes for e in others)
    if prefer == "quality":
        assert plan.job.recipe.method == "lora"


def test_sixteen_bits_where_they_fit_else_four_then_a_reason_for_each(wide_shape) -> None:
    roomy = plan_of(Request(model=wide_shape, gpu="rtx-4090", seq_len=512))
    assert roomy.job.recipe.method == "lora"
    assert any(reason.startswith("unquantized base") for reason in roomy.reasons)
    tight, _ = make_plan(Request(model=wide_shape, vram_gib=0.9, seq_len=512), CPU)
    rejected = [a for a in tight.alternatives if a.role == "rejected"]
    assert rejected
    assert all("more than usable" in a.reason for a in rejected)
    assert all(a.estimate.device_bytes > a.estimate.available_bytes for a in rejected)
    assert all(a.reason for a in tight.alternatives)


def test_a_plan_says_what_to_know_of_this_machine_and_keeps_what_lasts_of_it(wide_shape) -> None:
    gpu = replace(
        gpu_from_profile("rtx-4090"),
        origin="nvml",
        status=GpuStatus(temperature_c=70),
        unknown={"ecc": "Not Supported"},
    )
    here = Hardware(host=HOST, gpus=(gpu,), notes=("on WSL 2 ...",))
    plan, _ = make_plan(Request(model=wide_shape, seq_len=512), here)
    assert plan.notes[-1] == "on WSL 2 ..."
    assert plan.hardware.gpus == (replace(gpu, status=None, unknown={}),)
    assert Plan.from_toml(plan.to_toml()) == plan
    elsewhere, _ = make_plan(Request(model=wide_shape, gpu="rtx-4090", seq_len=512), here)
    assert "on WSL 2 ..." not in elsewhere.notes


def test_nothing_fits_names_the_closest_and_ways_out_that_were_planned(wide_shape) -> None:
    request = Request(model=wide_shape, vram_gib=1.5, seq_len=2048, settings=("micro_batch=8",))
    with pytest.raises(DoesNotFit) as error:
        make_plan(request, CPU)
    assert error.value.exit_code == 3
    assert "Closest: QLoRA (NF4), micro-batch 8, gradient checkpointing" in error.value.what
    found = error.value.details
    assert found["needs_bytes"] - found["available_bytes"] == found["missing_bytes"] > 0
    assert found["phase"]
    options = [way["option"] for way in found["remedies"]]
    assert any(option and option.startswith("--seq-len ") for option in options)
    assert any(option and option.startswith("--gpu ") for option in options)
    for way in found["remedies"]:
        if way["option"] and way["option"].startswith("--seq-len "):
            plan, _ = make_plan(replace(request, seq_len=int(way["option"].split()[1])), CPU)
            assert plan.estimate.fits == "yes"
        if way["option"] and way["option"].startswith("--gpu "):
            plan, _ = make_plan(replace(request, vram_gib=None, gpu=way["option"].split()[1]), CPU)
            assert way["needs_bytes"] <= plan.estimate.device_bytes <= plan.estimate.available_bytes


@pytest.mark.parametrize(("model", "seq_len"), [(None, 256), (TINYLLAMA, 2048)])
def test_a_single_rehearsal_tells_whether_anything_fits(wide_shape, model, seq_len) -> None:
    question = ask(Request(model=model or wide_shape, gpu="rtx-4090", seq_len=seq_len, prefer="memory"), CPU).question
    all_found, least = question.search().found, question.least().found
    assert len(least) < len(all_found) / 4
    assert min(c.estimate.device_bytes for c in least.values()) == min(
        c.estimate.device_bytes for c in all_found.values()
    )


def test_no_card_is_proposed_that_the_trainer_does_not_run_on(monkeypatch, wide_shape) -> None:
    larger = {name: gpu_profiles()[name] for name in ("mi210", "a100-80gb")}
    monkeypatch.setattr(remedies, "gpu_profiles", lambda: larger)
    with pytest.raises(DoesNotFit) as error:
        make_plan(Request(model=wide_shape, vram_gib=1.5, seq_len=2048, settings=("micro_batch=8",)), CPU)
    assert "a larger card: a100-80gb (from" in str(error.value.fix)


@pytest.fixture
def mixture(tmp_path):
    """Configuration of a model whose experts take 384 MiB in 16 bits, and all the rest 10 MiB."""
    config = Qwen3MoeConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=512, moe_intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_experts=64, num_experts_per_tok=4,
    )  # fmt: skip
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(tmp_path)
    return str(tmp_path)


def test_experts_in_4_bits_are_a_candidate_where_the_model_has_some(mixture, wide_shape) -> None:
    tight = Request(model=mixture, vram_gib=1.0, seq_len=128)
    plan, _ = make_plan(tight, CPU)
    assert plan.job.recipe.experts_4bit
    assert plan.shape.expert_params == 2 * 64 * 3 * 512 * 1024
    pinned, _ = make_plan(replace(tight, settings=("experts_4bit=true",)), CPU)
    assert pinned.job.recipe == plan.job.recipe
    resident = ("experts_4bit=false", "streamed_layers=0")
    with pytest.raises(OptionError, match="exclude each other") as error:
        make_plan(replace(tight, settings=resident), CPU)
    assert "leave out --set experts_4bit=false (QLoRA (NF4, 4-bit experts) fits" in str(error.value.fix)
    assert "or --set streamed_layers=0 (QLoRA (NF4) fits" in str(error.value.fix)
    roomy, _ = make_plan(replace(tight, vram_gib=24, prefer="quality"), CPU)
    assert not roomy.job.recipe.experts_4bit
    dense = plan_of(Request(model=wide_shape, gpu="rtx-4090", seq_len=512))
    assert not any(one.recipe.experts_4bit for one in dense.alternatives)


def test_two_words_that_exclude_each_other_are_named(wide_shape) -> None:
    request = Request(model=wide_shape, gpu="rtx-4090", seq_len=512, settings=("method=lora",), max_memory_gib=0.85)
    with pytest.raises(OptionError) as error:
        make_plan(request, CPU)
    assert error.value.what.startswith("--set method=lora and --max-memory 0.85 exclude each other")
    assert make_plan(replace(request, settings=()), CPU)[0].estimate.device_bytes <= 0.85 * GIB
    assert make_plan(replace(request, max_memory_gib=None), CPU)[0].job.recipe.method == "lora"
    with pytest.raises(OptionError, match="--set rank=8 and --min-rank 32 exclude each other"):
        make_plan(Request(model=TINYLLAMA, gpu="rtx-4090", settings=("rank=8",), min_rank=32), CPU)


def test_limits_rule_out_what_may_go_beyond_them(tiny_model, data_file) -> None:
    request = Request(model=str(tiny_model), data=str(data_file), gpu="rtx-4090", settings=("method=lora",))
    free, _ = make_plan(request, CPU)
    assert free.run_time_s is not None
    assert free.run_energy_kwh is not None
    hours = free.run_time_s.upper / 3600
    kept, _ = make_plan(replace(request, max_hours=hours * 1.01), CPU)
    assert kept.job == free.job
    with pytest.raises(DoesNotFit, match="may take longer than allowed"):
        make_plan(replace(request, max_hours=hours / 100), CPU)
    with pytest.raises(DoesNotFit, match="--max-energy-kwh"):
        make_plan(replace(request, max_energy_kwh=free.run_energy_kwh.upper / 100), CPU)
    with pytest.raises(OptionError, match="--max-hours needs the data"):
        make_plan(Request(model=TINYLLAMA, gpu="rtx-4090", max_hours=1), CPU)
    with pytest.raises(OptionError, match="power of this device is not known"):
        make_plan(replace(request, gpu="cpu", max_energy_kwh=1), CPU)


def test_a_least_rank_is_kept_to(wide_shape) -> None:
    plan, _ = make_plan(Request(model=wide_shape, gpu="rtx-4090", min_rank=48), CPU)
    assert (plan.job.recipe.rank, plan.job.recipe.alpha) == (48, 96.0)
    plan, _ = make_plan(Request(model=wide_shape, gpu="rtx-4090", min_rank=8), CPU)
    assert plan.job.recipe.rank == 16


def test_a_sequence_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(OptionError, match="was made for \\(2048 tokens\\)"):
        make_plan(Request(model=TINYLLAMA, gpu="rtx-4090", seq_len=4096), CPU)


def test_an_estimate_counts_the_model_s_own_weights() -> None:
    estimate = make_estimate(Request(model=TINYLLAMA, gpu="rtx-4090", settings=("rank=8",)), CPU).estimate
    # TinyLlama: 22 layers of q, k, v, o, gate, up, down with rank 8 beside them; 1.1B published weights
    per_layer = 8 * ((2048 + 2048) * 2 + (2048 + 256) * 2 + (2048 + 5632) * 3)
    assert estimate.trainable_params == 22 * per_layer
    assert estimate.total_params == 1_100_048_384 + 22 * per_layer
    assert sum(estimate.components.values()) == estimate.peak_allocated_bytes
    assert estimate.peak_allocated_bytes <= estimate.peak_reserved_bytes <= estimate.device_bytes
    assert estimate.step_time_s.lower <= estimate.step_time_s.upper


def test_the_file_round_trips_and_a_newer_one_is_refused(tmp_path, tiny_model, data_file) -> None:
    plan, prepared = make_plan(Request(model=str(tiny_model), data=str(data_file), gpu="cpu"), CPU)
    assert prepared is not None
    assert Plan.from_dict(plan.to_dict()) == plan
    file = tmp_path / "plan.toml"
    write_plan(plan, file)
    assert read_plan(file) == plan
    file.write_text(
        file.read_text(encoding="utf-8").replace("schema_version = 1", "schema_version = 2", 1), encoding="utf-8"
    )
    with pytest.raises(FileFormatError, match="schema_version 2 is newer"):
        read_plan(file)


def test_the_workload_sets_length_batch_and_steps(tiny_model, data_file) -> None:
    plan, _ = make_plan(Request(model=str(tiny_model), data=str(data_file), gpu="cpu"), CPU)
    work = plan.workload
    assert work is not None
    assert (work.rows, work.heldout_rows) == (36, 4)
    assert work.longest_tokens <= plan.job.recipe.seq_len < work.longest_tokens + PAD_MULTIPLE
    assert plan.job.recipe.micro_batch * plan.job.accumulation == 1
    assert plan.steps == 36 * 3


def test_padded_batches_never_outgrow_the_sequence_that_was_planned() -> None:
    for seq_len in (7, 100, 128, 2048):
        recipe = Recipe(seq_len=seq_len)
        assert seq_len % recipe.pad_multiple == 0
    assert Recipe(seq_len=2048).pad_multiple == PAD_MULTIPLE


def test_choose_prefers_nothing_that_does_not_fit() -> None:
    answer = make_estimate(Request(model=TINYLLAMA, vram_gib=1, seq_len=2048), CPU)
    assert choose([Candidate(answer.recipe, answer.estimate, 1.0)], prefer="balanced") is None


def test_a_target_is_what_it_says() -> None:
    assert isinstance(target(vram=24), Target)
    assert target(vram=24).device == "cuda"
    assert target("cpu", vram=4).available_bytes < 4 * GIB


def test_what_holds_the_card_is_named_where_closing_it_would_do(wide_shape) -> None:
    gpu = replace(
        gpu_from_profile("rtx-3060"),
        origin="nvml",
        free_bytes=int(0.88 * GIB),
        processes=(GpuProcess(pid=7, name="game.exe", used_bytes=8 * GIB),),
    )
    request = Request(model=wide_shape, seq_len=512, settings=("method=lora",))
    with pytest.raises(DoesNotFit) as error:
        make_plan(request, Hardware(host=HOST, gpus=(gpu,)))
    assert "; or close game.exe (7), which hold 8.0 GiB of the card; or " in str(error.value.fix)
    roomy = replace(gpu, free_bytes=11 * GIB)
    assert make_plan(request, Hardware(host=HOST, gpus=(roomy,)))[0].estimate.fits == "yes"


def test_full_fine_tuning_only_where_it_is_asked_for() -> None:
    plain = candidates(target("rtx-4090"), seq_len=64, rows_per_step=1, pinned={})
    assert {r.method for r in plain} == {"lora", "qlora"}
    asked = candidates(target("rtx-4090"), seq_len=64, rows_per_step=1, pinned={"method": "full"})
    assert {r.method for r in asked} == {"full"}
    assert {r.optimizer for r in asked} == {"adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"}
    plan, _ = make_plan(Request(model="smollm2-135m", gpu="rtx-4090", seq_len=256, settings=("method=full",)), CPU)
    assert plan.job.learning_rate == 2e-5
    assert plan.estimate.trainable_params == plan.shape.total_params


def test_savings_stand_in_their_order_whatever_is_pinned() -> None:
    for pinned in ({}, {"gradient_checkpointing": True}, {"checkpoint_every": 2}, {"offload_checkpoints": True}):
        found = families(target("rtx-4090"), seq_len=64, rows_per_step=1, pinned=pinned)
        assert [(f.base, f.saving) for f in found] == sorted((f.base, f.saving) for f in found)
        assert len({(f.base, f.saving) for f in found}) == len(found)


def test_what_was_not_tried_has_its_reason(wide_shape) -> None:
    plan = plan_of(Request(model=wide_shape, gpu="rtx-4090", seq_len=512))
    for start in ("8-bit bases: ", "torch.compile: ", "optimizers of 8 bits", "DoRA: ", "rsLoRA: ", "packing: "):
        assert sum(group.startswith(start) for group in plan.pruned) == 1
