"""Plans whose layers wait in the host's memory: when they are offered, what they take, what their copies cost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.errors import DoesNotFit, ModelError
from autoft.planner.estimate import Range
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of_profile
from autoft.planner.facts import Assumption
from autoft.planner.plan.make import make_plan
from autoft.planner.request import Request
from autoft.planner.timing.gpu_rates import gpu_rates
from autoft.planner.timing.pcie import pcie_of
from autoft.planner.timing.roofline import Timing
from autoft.planner.timing.streaming import streamed
from autoft.planner.tracing.work import Kernel
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Hardware
from autoft.trainer.model.stream import copied_bytes, places
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_config, resolve
from autoft.units import GIB
from tests.trainer.test_doctor import HOST

LAYERS = 12
STREAMS = Recipe(
    method="qlora", quant_type="nf4", double_quant=True, autocast=True, gradient_checkpointing=True, micro_batch=1,
    seq_len=128,
)  # fmt: skip
NOWHERE = Hardware(driver_version=None, cuda_version=None, host=HOST, gpus=())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """1.3B weights in 12 layers of 200 MiB each in 16 bits."""
    folder = tmp_path_factory.mktemp("shapes") / "deep"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def estimator(model: Path) -> Estimator:
    return Estimator("deep", load_config(resolve(str(model))), target_of_profile("rtx-3060"))


def plan_at(model: Path, gib: float, hardware: Hardware = NOWHERE, **more):
    settings = ("micro_batch=1", *more.pop("settings", ()))
    return make_plan(
        Request(model=str(model), gpu="rtx-3060", vram_gib=gib, seq_len=128, settings=settings, **more), hardware
    )[0]


def test_what_fits_in_full_is_not_streamed(model: Path) -> None:
    plan = plan_at(model, 3.0)
    assert plan.job.recipe.streamed_layers == 0
    assert not any(other.recipe.streamed_layers for other in plan.alternatives)
    assert plan.job.max_new_tokens > 0


def test_with_less_memory_as_few_layers_are_streamed_as_make_it_fit(model: Path, estimator: Estimator) -> None:
    plan = plan_at(model, 1.2)
    recipe, room = plan.job.recipe, plan.estimate.available_bytes
    assert 2 < recipe.streamed_layers <= LAYERS
    assert recipe.gradient_checkpointing
    assert plan.estimate.device_bytes <= room
    one_less = estimator.estimate(replace(recipe, streamed_layers=recipe.streamed_layers - 1))
    assert one_less.device_bytes > room
    (reason,) = (record for record in plan.reason_records if record.key == "streamed_layers")
    assert reason.figures == {
        "streamed_layers": recipe.streamed_layers,
        "host_bytes": max(plan.estimate.host_bytes["load"], plan.estimate.host_bytes["train"]),
    }
    assert any(record.kind == "link" for record in plan.estimate.assumption_records)
    assert plan.job.max_new_tokens == 0
    assert any(record.key == "max_new_tokens" for record in plan.reason_records)


def test_a_card_that_shares_the_host_s_memory_streams_nothing(model: Path) -> None:
    with pytest.raises(DoesNotFit) as refused:
        make_plan(Request(model=str(model), gpu="jetson-agx-orin-64gb", vram_gib=1.2, seq_len=128), NOWHERE)
    assert "streamed" not in str(refused.value)


def test_answers_are_generated_where_the_user_asks_for_them(model: Path) -> None:
    assert plan_at(model, 1.2, settings=("max_new_tokens=16",)).job.max_new_tokens == 16


def test_a_count_that_the_user_sets_is_kept_to(model: Path) -> None:
    assert plan_at(model, 8.0, settings=("streamed_layers=5",)).job.recipe.streamed_layers == 5
    with pytest.raises(DoesNotFit):
        plan_at(model, 1.0, settings=("streamed_layers=0",))


def test_more_layers_than_there_are_and_a_cpu_are_refused(estimator: Estimator, model: Path) -> None:
    with pytest.raises(ModelError, match="streamed_layers=13: deep has 12 layers"):
        estimator.estimate(replace(STREAMS, streamed_layers=LAYERS + 1))
    with pytest.raises(ModelError, match="the CPU has them there"):
        make_plan(Request(model=str(model), gpu="cpu", vram_gib=32, settings=("streamed_layers=5",)), NOWHERE)


def test_a_layer_s_weights_are_all_that_goes(estimator: Estimator) -> None:
    """From the third on, each streamed layer takes its weights and scales off the card, and nothing else."""
    taken = [estimator.estimate(replace(STREAMS, streamed_layers=n)).peak_allocated_bytes for n in (2, 3, 7, LAYERS)]
    rehearsal = estimator.rehearse(replace(STREAMS, streamed_layers=LAYERS))
    (layer,) = set(rehearsal.streamed_bytes)
    own = sum(w.size + w.state[0] if w.state else w.size for w in rehearsal.weights if w.layer == 0 and not w.adapter)
    assert own <= layer < own + 512 * 20
    assert len(rehearsal.streamed_bytes) == LAYERS
    assert taken[0] - taken[1] == pytest.approx(layer, abs=512 * 40)
    assert taken[1] - taken[3] == pytest.approx(9 * layer, abs=512 * 400)
    assert places(rehearsal.streamed_bytes) == [layer, layer]


def test_ram_that_is_too_small_is_told_with_what_is_missing(model: Path) -> None:
    """For the card of this machine, whose host is known."""
    card = replace(gpu_from_profile("rtx-3060"), origin="nvml", total_bytes=int(1.2 * GIB), free_bytes=int(1.2 * GIB))
    here = Request(model=str(model), seq_len=128, settings=("micro_batch=1",))
    roomy = replace(HOST, ram_available_bytes=32 * GIB)
    plan, _ = make_plan(here, replace(NOWHERE, host=roomy, gpus=(card,)))
    need = max(plan.estimate.host_bytes["load"], plan.estimate.host_bytes["train"])
    small = replace(HOST, ram_available_bytes=need - GIB // 4)
    with pytest.raises(DoesNotFit, match=r"which needs .* of host RAM, 256 MiB more than is free"):
        make_plan(here, replace(NOWHERE, host=small, gpus=(card,)))


def timing(copied: tuple[int, int], flops: float, rates) -> Timing:
    work = tuple(Counter({Kernel("product", "bfloat16", share * flops, 0): 1}) for share in (1, 2))
    alone = Timing(
        step_s=Range(lower=1.0, upper=2.0), energy_wh=None, basis=Assumption(kind="time", basis="x", text="x")
    )
    return streamed(alone, copied, work, rates)


def test_copies_cost_what_the_layers_work_does_not_hide() -> None:
    rates = gpu_rates(gpu_from_profile("rtx-3060"))
    hidden = timing((GIB, GIB), 1e15, rates)
    assert (hidden.step_s.lower, hidden.step_s.upper) == (1.0, 2.0)
    assert hidden.link is not None
    assert hidden.link.text.endswith("all hidden behind the layers' work")
    bare = timing((GIB, 3 * GIB), 0.0, rates)
    launch = rates.launch_s.upper
    assert bare.step_s.lower == pytest.approx(1.0 + 4 * GIB / rates.host_link.upper, abs=10 * launch)
    assert bare.step_s.upper == pytest.approx(2.0 + 4 * GIB / rates.host_link.lower, abs=10 * launch)
    assert bare.link is not None
    assert bare.link.figures["bytes"] == 4 * GIB


def test_a_pass_finds_in_their_places_what_the_one_before_it_ended_with() -> None:
    assert copied_bytes([3, 5, 7, 11]) == (18, 8)
    assert copied_bytes([3, 5]) == (0, 0)


def test_the_link_is_that_of_the_card_where_it_is_known() -> None:
    card = gpu_from_profile("rtx-4060")
    known = pcie_of(card)
    assert known is not None
    assert known[1] == "PCIe 4.0 x8"
    rate = gpu_rates(card).host_link
    assert rate.upper < known[0]
    unknown = replace(card, profile=None)
    assert pcie_of(unknown) is None
    assert gpu_rates(unknown).host_link.upper > rate.upper
