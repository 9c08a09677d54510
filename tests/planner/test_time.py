"""Time of a step: what is counted, and how the range follows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoft.planner.estimate import Range
from autoft.planner.estimator.target import target_of
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import find_depth, rehearse
from autoft.planner.timing.gpu_rates import gpu_rates
from autoft.planner.timing.roofline import NEW_PAGES_BYTES, Rate, Rates, cpu_rates, step_timing
from autoft.planner.tracing.trace import Trace
from autoft.planner.tracing.work import Kernel, Work, attention, product_dtypes
from autoft.profiles.architectures import architecture
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.profiles.hardware import Gpu, Hardware
from autoft.trainer.recipe import Recipe
from tests.support.machines import HOST

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 500, "num_hidden_layers": 12, "tie_word_embeddings": False}  # fmt: skip
LLAMA = transformers.AutoConfig.for_model("llama", **SHAPE)
SHORT = transformers.AutoConfig.for_model("llama", **(SHAPE | {"num_hidden_layers": 2}))
QLORA = {"method": "qlora", "quant_type": "nf4", "double_quant": True}
HALF = {"autocast": True, "micro_batch": 2, "seq_len": 128, "rank": 4}
ADA = Device((8, 9))


def rehearsed(device: Device = ADA, config: transformers.PretrainedConfig = SHORT, **recipe) -> Rehearsal:
    return rehearse(Recipe.from_dict({**HALF, **recipe}), config, device, depth=None)


def step_s(rehearsal: Rehearsal, card: str = "rtx-4090") -> Range:
    work = rehearsal.work + rehearsal.optimizer_work
    return step_timing(work, rehearsal.managed_bytes, gpu_rates(gpu_from_profile(card))).step_s


def flops(work: Work) -> float:
    return sum(kernel.flops * launches for kernel, launches in work.items())


# --- what is counted


@pytest.mark.parametrize("device", [ADA, Device(None)], ids=["cuda", "cpu"])
@pytest.mark.parametrize("loss", ["fused", "selected", "logits"])
def test_arithmetic_of_a_llama_step_is_the_closed_form(device: Device, loss: str) -> None:
    recipe = {"loss": loss, "seq_len": 256}
    batch, length, layers, width, ffn, kv, vocab, rank = 2, 256, 12, 64, 128, 32, 500, 4
    linear = layers * (2 * width * width + 2 * width * kv + 3 * width * ffn) + width * vocab
    adapter = layers * rank * (2 * (width + width) + 2 * (width + kv) + 3 * (width + ffn))
    # forward and the gradient of inputs; the adapters' own gradients too; the fused head computes its logits again
    tokens = 4 * linear + 6 * adapter + (2 * width * vocab if loss == "fused" else 0)
    causal = 2 * batch * width * length * length  # 4BHSTD, half of it masked
    expected = batch * length * tokens + layers * causal * (1 + 2.5)
    assert flops(rehearsed(device, LLAMA, **recipe).work) == pytest.approx(expected, rel=0.02)


def test_a_few_layers_count_for_all() -> None:
    recipe = Recipe.from_dict({**HALF, "gradient_checkpointing": True})
    depth = find_depth(recipe, LLAMA)
    assert depth is not None
    assert depth.rehearsed < 12
    assert rehearse(recipe, LLAMA, ADA, depth=depth).work == rehearse(recipe, LLAMA, ADA, depth=None).work


def test_four_bit_products_count_as_much_as_others_and_their_unpacking_besides() -> None:
    whole, packed = rehearsed().work, rehearsed(**QLORA).work
    assert flops(packed) == flops(whole)
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    unpacked = sum(kernel.moved_bytes * launches for kernel, launches in packed.items() if kernel.kind == "unpack")
    # half a byte each read and two written, forward and backward; scales come on top
    assert unpacked >= 2 * 2.5 * weights
    assert not [kernel for kernel in whole if kernel.kind == "unpack"]


def test_checkpointing_computes_every_layer_s_forward_again() -> None:
    plain, again = (
        flops(rehearsed(loss="logits").work),
        flops(rehearsed(loss="logits", gradient_checkpointing=True).work),
    )
    head = 2 * 2 * 128 * 64 * 500
    forward = (plain - 2 * head) / 2
    assert again - plain == pytest.approx(forward, rel=0.1)


def test_causal_attention_is_half_and_its_backward_five_products_for_two() -> None:
    q = torch.empty(2, 4, 128, 16, device="meta", dtype=torch.bfloat16)
    kv = torch.empty(2, 2, 128, 16, device="meta", dtype=torch.bfloat16)
    whole = attention(q, kv, kv, causal=False)
    assert whole == Kernel("attention", "bfloat16", 4 * 2 * 4 * 128 * 128 * 16, 2 * (2 * q.numel() + 2 * kv.numel()))
    assert attention(q, kv, kv, causal=True).flops == whole.flops / 2
    assert attention(q, kv, kv, causal=True, backward=True).flops == whole.flops * 1.25


def test_views_and_empty_tensors_launch_nothing_and_an_expanded_dimension_is_read_once() -> None:
    trace = Trace()
    with trace:
        x = torch.empty(4, 8, device="meta")
        x.view(32).detach().unsqueeze(0).t()
        torch.empty_like(x)
        assert not trace.sections[-1].work
        x + x[:1].expand(4, 8)
        torch.zeros_like(x)
    assert trace.sections[-1].work == Counter(
        {Kernel("other", "", 0.0, 2 * 4 * 8 * 4 + 8 * 4): 1, Kernel("other", "", 0.0, 4 * 8 * 4): 1}
    )


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_the_optimizer_reads_and_writes_at_least_weights_gradients_and_state(optimizer: str) -> None:
    rehearsal = rehearsed(optimizer=optimizer, rank=64)
    state = 8 if optimizer == "adamw_torch" else 2
    moved = sum(kernel.moved_bytes * launches for kernel, launches in rehearsal.optimizer_work.items())
    assert moved >= rehearsal.trainable_params * (4 + 4 + 2 * state)


# --- the range


ONE = Rate(lower=50.0, upper=100.0, basis="measured", likely=80.0)
ATTENTION = {"float32": Rate(lower=25.0, upper=50.0, basis="measured", likely=40.0)}
RATES = Rates(
    products={"float32": ONE},
    attention=ATTENTION,
    efficient=ATTENTION,
    memory=Rate(lower=5.0, upper=10.0, basis="measured"),
    unpack=Rate(lower=1.0, upper=2.0, basis="assumption"),
    launch_s=Range(lower=0.5, upper=1.0),
    runs_ahead=False,
    host_link=Rate(lower=4.0, upper=8.0, basis="assumption"),
    power_w=Range(lower=3600.0, upper=7200.0),
)
WORK: Work = Counter(
    {Kernel("product", "float32", 200, 10): 2, Kernel("product", "float32", 10, 50): 1, Kernel("unpack", "", 0, 4): 1}
)


def test_a_kernel_takes_the_longer_of_arithmetic_and_traffic_and_every_launch_counts() -> None:
    timing = step_timing(WORK, 8, RATES)
    # fastest: 2 + 2 + 5 + 2 s and 4 launches of 0.5 s; slowest: twice that, 4 launches of 1 s, 16 bytes of paging
    assert timing.step_s == Range(lower=11.0 + 2.0, upper=22.0 + 4.0 + 4.0)
    assert timing.energy_wh == Range(lower=13.0, upper=60.0)
    fused: Work = Counter({Kernel("attention", "float32", 200, 10): 1})
    assert step_timing(fused, 0, RATES).step_s == Range(lower=4.5, upper=9.0)
    big: Work = Counter({Kernel("other", "", 0, NEW_PAGES_BYTES): 1})
    new_pages = replace(RATES, launch_s=Range(lower=0, upper=0), new_pages=Rate(lower=0.5, upper=1.0, basis="measured"))
    assert step_timing(big, 0, new_pages).step_s.lower == NEW_PAGES_BYTES


def test_parts_of_a_gpu_s_step_are_not_all_at_their_worst_together() -> None:
    ahead = replace(RATES, runs_ahead=True, launch_s=Range(lower=0.0, upper=0.0))
    step = step_timing(WORK, 0, ahead).step_s
    # likely: 2.5 + 2.5 + 50 / sqrt(50) s of products, 4 / sqrt(2) of unpacking
    likely = (5 + 50**0.5, 2 * 2**0.5)
    assert step.lower == pytest.approx(sum(likely) - ((likely[0] - 9) ** 2 + (likely[1] - 2) ** 2) ** 0.5)
    assert step.upper == pytest.approx(sum(likely) + ((18 - likely[0]) ** 2 + (4 - likely[1]) ** 2) ** 0.5)
    # one part alone has all of its range
    alone: Work = Counter({Kernel("product", "float32", 200, 10): 2})
    assert step_timing(alone, 0, ahead).step_s == Range(lower=4.0, upper=8.0)
    # a card that is slower than others of its kind is so in every part
    varied = step_timing(alone, 0, replace(ahead, card_s=Range(lower=0.9, upper=1.2))).step_s
    assert (varied.lower, varied.upper) == pytest.approx((3.6, 9.6))
    # each kernel begins and ends
    own = step_timing(alone, 0, replace(ahead, kernel_s=Range(lower=1.0, upper=4.0))).step_s
    assert (own.lower, own.upper) == pytest.approx((5 + 4 - 5**0.5, 5 + 4 + 5))


def test_a_host_that_runs_ahead_is_hidden_behind_the_device_or_the_device_behind_it() -> None:
    ahead = replace(RATES, runs_ahead=True)
    many: Work = Counter({Kernel("other", "", 0, 1): 100})
    assert step_timing(many, 0, ahead).step_s == Range(lower=50.0, upper=100.0)
    few: Work = Counter({Kernel("other", "", 0, 1000): 1})
    assert step_timing(few, 0, ahead).step_s == Range(lower=100.0, upper=200.0)
    assert step_timing(many, 0, replace(ahead, runs_ahead=False)).step_s.lower == 60.0
    unpacking: Work = Counter({Kernel("unpack", "", 0, 0.01): 100})
    assert step_timing(unpacking, 0, replace(ahead, unpack_launches=3.0)).step_s == Range(lower=200.0, upper=400.0)


KERNELS = st.lists(
    st.tuples(
        st.sampled_from(["product", "attention", "efficient", "unpack", "other"]),
        st.sampled_from(["bfloat16", "float16", "float32"]),
        st.floats(1, 1e13),
        st.floats(1, 1e10),
        st.integers(1, 1000),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(KERNELS, st.integers(0, 5), st.floats(1, 4), st.floats(1, 4), st.sampled_from(sorted(gpu_profiles())))
def test_a_kernel_with_more_to_do_never_makes_a_step_quicker(
    kernels: list, which: int, more_flops: float, more_bytes: float, card: str
) -> None:
    rates = gpu_rates(gpu_from_profile(card))

    def step(changed: bool) -> Range:
        work: Work = Counter()
        for number, (kind, dtype, flops, moved, launches) in enumerate(kernels):
            if changed and number == which % len(kernels):
                flops, moved = flops * more_flops, moved * more_bytes
            whole = kind in ("unpack", "other")
            work[Kernel(kind, "" if whole else dtype, 0.0 if whole else flops, moved)] += launches
        return step_timing(work, 0, rates).step_s

    less, more = step(changed=False), step(changed=True)
    assert less.lower <= more.lower * (1 + 1e-9)
    assert less.upper <= more.upper * (1 + 1e-9)
    assert less.lower <= less.upper


RECIPES = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 32),
        "micro_batch": st.integers(1, 4),
        "seq_len": st.integers(2, 512),
        "loss": st.sampled_from(["fused", "selected", "logits"]),
        "optimizer": st.sampled_from(["adamw_torch", "paged_adamw_8bit"]),
    }
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES, st.sampled_from(["rank", "micro_batch", "seq_len"]), st.sampled_from(sorted(gpu_profiles())))
def test_more_work_never_takes_less_time(recipe: dict, field: str, card: str) -> None:
    once = rehearsed(**recipe)
    less = step_s(once, card)
    assert 0 < less.lower <= less.upper
    for changed in ({field: 2 * recipe[field]}, {"gradient_checkpointing": True}):
        more = step_s(rehearsed(**{**recipe, **changed}), card)
        assert less.lower <= more.lower
        assert less.upper <= more.upper


def test_time_follows_the_card_s_figures() -> None:
    wide = transformers.AutoConfig.for_model("llama", **(SHAPE | {"hidden_size": 1024, "num_hidden_layers": 1}))
    rehearsal = rehearsed(config=wide, micro_batch=8, seq_len=1024)
    work = rehearsal.work + rehearsal.optimizer_work
    card = gpu_from_profile("rtx-4090")
    rates = gpu_rates(card)
    base = step_timing(work, 0, rates).step_s
    for field in ("half_flops_per_s", "float32_flops_per_s", "memory_bytes_per_s"):
        value = getattr(card, field)
        slower = step_timing(work, 0, gpu_rates(replace(card, **{field: value / 2}))).step_s
        assert base.lower <= slower.lower
        assert base.upper <= slower.upper
    half = gpu_rates(
        replace(
            card,
            half_flops_per_s=card.half_flops_per_s / 2,
            float32_flops_per_s=card.float32_flops_per_s / 2,
            memory_bytes_per_s=card.memory_bytes_per_s / 2,
        )
    )
    # all but what a kernel takes to begin and end
    base, slower = (
        step_timing(work, 0, replace(each, kernel_s=Range(lower=0.0, upper=0.0))).step_s for each in (rates, half)
    )
    assert slower.lower == pytest.approx(2 * base.lower)


def test_four_bit_weights_save_no_time_where_arithmetic_decides() -> None:
    wide = {"hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 1}
    config = transformers.AutoConfig.for_model("llama", **(SHAPE | wide))
    # beside a 16-bit base PEFT casts what float32 adapters read, beside a 4-bit one it leaves that to autocast
    recipe = {"micro_batch": 8, "seq_len": 1024, "adapter_dtype": "bfloat16"}
    whole, packed = (rehearsed(config=config, **recipe, **how) for how in ({}, QLORA))
    for card in gpu_profiles():
        assert step_s(packed, card).lower >= step_s(whole, card).lower


def test_without_tensor_cores_for_it_a_dtype_goes_at_the_float32_rate() -> None:
    t4, ada = gpu_rates(gpu_from_profile("t4")).products, gpu_rates(gpu_from_profile("rtx-4090")).products
    assert t4["bfloat16"].upper < t4["float32"].upper
    assert t4["float16"].upper > 4 * t4["float32"].upper
    assert ada["bfloat16"] == ada["float16"]
    pascal = gpu_rates(gpu_from_profile("p40")).products
    assert pascal["float16"] == pascal["float32"]
    assert pascal["bfloat16"].upper < pascal["float32"].upper


@pytest.mark.parametrize("card", ["t4", "l4", "a100-pcie-40gb", "a10"])
def test_a_power_limit_holds_long_products(card: str) -> None:
    gpu = gpu_from_profile(card)
    held, free = (gpu_rates(each) for each in (gpu, replace(gpu, tdp_w=1000.0)))
    limit = gpu.tdp_w / architecture(gpu.compute_capability).joules_per_flop
    assert held.products["float16"].middle < limit < gpu.half_flops_per_s
    assert held.products["float16"].middle < free.products["float16"].middle
    assert f"from the data sheet and its {gpu.tdp_w:.0f} W limit" in step_timing(rehearsed().work, 0, held).basis.text
    assert "limit" not in step_timing(rehearsed().work, 0, free).basis.text
    # memory is not what draws the power
    assert held.memory == free.memory


def test_the_memory_efficient_kernel_is_slower_than_flash_attention_where_there_is_one() -> None:
    ada, t4 = gpu_rates(gpu_from_profile("rtx-4090")), gpu_rates(gpu_from_profile("t4"))
    assert ada.efficient["float16"].upper < ada.attention["float16"].middle
    assert t4.efficient == t4.attention
    masked = rehearsed(Device((8, 9)), packing=True).work
    assert {kernel.kind for kernel in masked if kernel.kind in ("attention", "efficient")} == {"efficient"}
    assert not [kernel for kernel in rehearsed(Device((8, 9))).work if kernel.kind == "efficient"]


def test_a_card_without_figures_has_a_wide_range_and_no_energy() -> None:
    unknown = Gpu(name="a GPU", origin="user", total_bytes=0, free_bytes=0, bf16=True)
    work = rehearsed().work
    timing = step_timing(work, 0, gpu_rates(unknown))
    assert timing.energy_wh is None
    assert timing.basis.basis == "assumption"
    assert timing.step_s.lower <= timing.step_s.upper


@pytest.mark.parametrize("recipe", [{"autocast": False, "base_dtype": "float32"}, {}, {"base_dtype": "float16"}])
def test_only_dtypes_that_are_multiplied_are_measured(recipe: dict) -> None:
    asked = []

    def measure(dtype, _shape) -> float:
        asked.append(dtype)
        return 1e11

    work = rehearsed(Device(None), **recipe).work
    host = Hardware(host=HOST, no_gpu_reason="none")
    target = target_of(host, gpu_name="cpu", vram_gib=None, cpu_flops_per_s=measure)
    rates = replace(target, cpu_bytes_per_s=lambda: (1e10, 1e9)).rates(product_dtypes(work), None)
    # rotary angles are float32 whatever the recipe
    assert set(asked) == {recipe.get("base_dtype", "bfloat16"), "float32"}
    assert rates == cpu_rates(dict.fromkeys(asked, 1e11), (1e10, 1e9))
    assert step_timing(work, 0, rates).energy_wh is None


def test_this_cpu_s_memory_is_measured_once() -> None:
    target = target_of(Hardware(host=HOST), gpu_name="cpu", vram_gib=None, cpu_flops_per_s=lambda _dtype, _shape: 1e11)
    assert all(1e7 < bytes_per_s < 1e13 for bytes_per_s in target.cpu_bytes_per_s())
    assert target.cpu_bytes_per_s() == target.cpu_bytes_per_s()
