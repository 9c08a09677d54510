"""The bench: real readings of this CPU, and plans that use what was kept."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.planner.estimate import Range
from autoft.planner.estimator.target import target_of
from autoft.planner.plan.cached_estimates import Kept, ask, keep, recall
from autoft.planner.request import Request
from autoft.planner.timing import microbench as bench_module
from autoft.planner.timing.gpu_rates import gpu_rates
from autoft.planner.timing.microbench import measure, readings
from autoft.planner.timing.roofline import BENCH_ATTENTION, CARD_PRODUCTS, _basis, bench_rates, cpu_rates
from autoft.profiles import bench_store
from autoft.profiles.bench_store import BYTES, FLOPS, Bench, Reading, cpu_key, gpu_key
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Hardware
from tests.support.machines import HOST
from tests.support.machines import NO_GPU as NO_CARD

GIB = 2**30
CARD = replace(gpu_from_profile("rtx-3060"), origin="nvml", index=0, uuid="GPU-1")
WITH_CARD = Hardware(host=HOST, gpus=(CARD,), driver_version="580.65.06", cuda_version="13.0")
DTYPES = ("float32", "bfloat16", "float16")


def reading(what: str, median: float, dtype: str = "", shape: tuple[int, ...] = (), unit: str = FLOPS) -> Reading:
    return Reading(what=what, unit=unit, median=median, least=median, most=median, repeats=9, dtype=dtype, shape=shape)


def of_card(date: str = "2026-11-25") -> Bench:
    key = gpu_key(CARD, "580.65.06")
    assert key is not None
    return Bench(
        key=key,
        date=date,
        readings=(
            reading("product", 2e13, "bfloat16", (2048, 576, 1536)),
            reading("product", 3e13, "bfloat16", (2048, 2048, 8192)),
            reading("product", 4e13, "bfloat16", (2048, 4096, 4096)),
            reading("attention", 1e13, "bfloat16", (2, 16, 1024, 64)),
            reading("attention", 2e13, "bfloat16", (1, 32, 2048, 128)),
            reading("copy", 3e11, unit=BYTES),
            reading("unpack", 1e11, "bfloat16", unit=BYTES),
            reading("to device", 2e10, unit=BYTES),
        ),
    )


def of_cpu() -> Bench:
    return Bench(
        key=cpu_key(HOST),
        date="2026-11-25",
        readings=(
            *(reading("product", 1e11, dtype, (512, 2048, 8192)) for dtype in DTYPES),
            reading("memory", 2e10, unit=BYTES),
            reading("new pages", 5e9, unit=BYTES),
        ),
    )


def target(hardware: Hardware, gpu: str | None = None):
    def not_now(*_: object) -> float:
        raise AssertionError("measured while planning")

    return target_of(hardware, gpu_name=gpu, vram_gib=None, cpu_flops_per_s=not_now)


# --- measuring


def test_this_cpu_is_measured_within_its_budget() -> None:
    for budget_s in (6.0, 24.0):  # more where other processes have the cores and something is out of time
        began = time.monotonic()
        found = list(readings("cpu", budget_s))
        assert time.monotonic() - began < 10 * budget_s  # a share that hangs, not a slow one
        measured = {each.what for each in found if isinstance(each, Reading)}
        if {"product", "memory", "copy"} <= measured:
            break
    assert {"product", "memory", "copy"} <= measured
    for each in found:
        if isinstance(each, Reading):
            assert bench_store.check(each) is each
            assert each.median > 1e6
    assert not list(bench_store.folder().parent.rglob(".disk-*"))


def test_what_does_not_fit_the_budget_is_left_out_and_said() -> None:
    found = list(readings("cpu", 0.02))
    assert not [each for each in found if isinstance(each, Reading) and each.what == "4-bit product"]
    left_out = [each for each in found if isinstance(each, str)]
    assert any("out of time" in each or "too slow" in each for each in left_out)


def test_a_thing_that_fails_leaves_the_rest(monkeypatch) -> None:
    import bitsandbytes as bnb

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(bnb.functional, "quantize_4bit", broken)
    monkeypatch.setattr(bench_module, "DISK_BYTES", 2**20)
    found = list(readings("cpu", 6.0))
    assert "4-bit: RuntimeError: no kernel for this" in found
    assert any(isinstance(each, Reading) and each.what == "disk read" for each in found)


def test_a_disk_that_takes_nothing_is_left_out(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path / "file" / "home"))
    found = list(readings("cpu", 2.0))
    assert any(isinstance(each, str) and each.startswith("disk: NotADirectoryError") for each in found)


def test_the_child_is_ended_when_its_time_is_up() -> None:
    began = time.monotonic()
    assert measure(0.3) == ()
    assert time.monotonic() - began < 20


# --- what plans make of it


def test_a_card_s_bench_takes_the_place_of_its_data_sheet() -> None:
    before = target(WITH_CARD).rates(["bfloat16"], None)
    assert _basis(before).basis == "data sheet"
    bench_store.keep(of_card())
    here = target(WITH_CARD)
    assert here.bench == of_card()
    rates = here.rates(["bfloat16"], None)
    assert (rates.products["bfloat16"].lower, rates.products["bfloat16"].upper) == pytest.approx((1.4e13, 4.32e13))
    assert rates.attention["bfloat16"].lower == pytest.approx(1e13 * BENCH_ATTENTION[0])
    assert rates.attention["bfloat16"].upper == pytest.approx(2e13 * BENCH_ATTENTION[1])
    assert {rate.basis for rate in (rates.memory, rates.unpack, rates.host_link)} == {"measured"}
    # what was not measured stays as it was
    assert rates.products["float32"] == before.products["float32"]
    assert rates.launch_s == before.launch_s
    # FlashAttention is what the bench timed, not the memory-efficient kernel; and the card is this one
    assert rates.efficient == before.efficient
    assert rates.card_s == Range(lower=1.0, upper=1.0)
    assert _basis(rates).basis == "bench of 2026-11-25"
    assert _basis(rates).text == (
        "time: 14 to 43 TFLOP/s and 210 to 375 GB/s, measured on 2026-11-25, "
        "of which a step is taken to get 70% to 108%"
    )


def test_products_are_those_of_the_nearest_width_and_the_range_is_narrower() -> None:
    sheet = gpu_rates(CARD)
    for width, figure in ((64, 2e13), (576, 2e13), (1100, 3e13), (2048, 3e13), (3584, 4e13), (8192, 4e13)):
        rate = bench_rates(sheet, of_card(), width).products["bfloat16"]
        assert (rate.lower, rate.middle, rate.upper) == pytest.approx(tuple(figure * s for s in CARD_PRODUCTS))
        assert rate.upper / rate.lower < sheet.products["bfloat16"].upper / sheet.products["bfloat16"].lower


def test_what_else_was_at_work_widens_the_range() -> None:
    steady = bench_rates(gpu_rates(CARD), of_card(), 2048).products["bfloat16"]
    disturbed = [replace(each, most=2 * each.median) for each in of_card().readings]
    wide = bench_rates(gpu_rates(CARD), replace(of_card(), readings=tuple(disturbed)), 2048).products["bfloat16"]
    assert wide.lower == steady.lower
    assert wide.upper == 2 * steady.upper


def test_real_steps_were_within_what_a_bench_predicts() -> None:
    path = Path(__file__).parents[2] / "benchmarks/results/step_time_bench.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 12
    for case in cases:
        assert case["predicted_lower_s"] <= case["measured_s"] <= case["predicted_upper_s"], case


def test_a_bench_of_another_card_or_other_versions_is_not_used(monkeypatch) -> None:
    bench_store.keep(of_card())
    assert target(WITH_CARD).bench is not None
    assert target(replace(WITH_CARD, gpus=(replace(CARD, uuid="GPU-2"),))).bench is None
    assert target(replace(WITH_CARD, driver_version="581.1")).bench is None
    assert target(WITH_CARD, "rtx-3060").bench is None  # a card of the catalogue
    assert target(WITH_CARD, "cpu").bench is None
    monkeypatch.setattr(bench_store, "EDITION", "0")
    assert target(WITH_CARD).bench is None


def test_a_cpu_with_a_bench_is_not_measured_while_planning() -> None:
    with pytest.raises(AssertionError, match="measured while planning"):
        target(NO_CARD).rates(["float32"], None)
    assert target(NO_CARD).measures_now
    bench_store.keep(of_cpu())
    here = replace(target(NO_CARD), cpu_bytes_per_s=lambda: pytest.fail("measured while planning"))
    assert not here.measures_now
    rates = here.rates(DTYPES, None)
    assert rates.products == {
        dtype: replace(rate, on="2026-11-25")
        for dtype, rate in cpu_rates(dict.fromkeys(DTYPES, 1e11), (2e10, 5e9)).products.items()
    }
    assert "measured on 2026-11-25" in _basis(rates).text


def test_a_dtype_that_the_bench_left_out_is_measured_while_planning() -> None:
    lacking = replace(of_cpu(), readings=tuple(r for r in of_cpu().readings if r.dtype != "float16"))
    here = replace(target(NO_CARD), bench=lacking, cpu_flops_per_s=lambda dtype, _shape: 5e9)
    assert here.measures_now
    rates = here.rates(["float32", "float16"], None)
    assert rates.products["float16"].on is None
    assert rates.products["float16"].upper == pytest.approx(5.5e9)
    assert rates.products["float32"].on == "2026-11-25"


def test_a_bench_makes_another_question_of_it() -> None:
    from autoft.planner.estimate import Estimate
    from autoft.trainer.recipe import Recipe

    def key(hardware: Hardware, gpu: str | None = None) -> str:
        question = ask(Request(model="tinyllama-1.1b-chat-v1.0", gpu=gpu, seq_len=512), hardware)
        assert question is not None
        return question.key

    first, elsewhere, cpu = key(WITH_CARD), key(WITH_CARD, "rtx-4090"), key(NO_CARD)
    bench_store.keep(of_card())
    second = key(WITH_CARD)
    assert second != first
    assert key(WITH_CARD, "rtx-4090") == elsewhere
    bench_store.keep(of_card("2026-11-26"))
    assert key(WITH_CARD) not in (first, second)
    bench_store.keep(of_cpu())
    assert key(NO_CARD) != cpu

    # such an answer was not measured "earlier today"
    estimate = Estimate(
        method="rehearsal", peak_allocated_bytes=1, peak_reserved_bytes=1, device_bytes=1, available_bytes=1,
        fits="yes", components={}, phases={}, step_time_s=Range(lower=1.0, upper=2.0), tokens_per_s=1.0,
        trainable_params=1, total_params=1, assumptions=("a",),
    )  # fmt: skip
    question = ask(Request(model="tinyllama-1.1b-chat-v1.0", seq_len=512), NO_CARD)
    assert question is not None
    keep(question, Kept(Recipe(), estimate))
    found = recall(question)
    assert found is not None
    assert found.estimate.assumptions == ("a",)
