"""Several hosts: what the network between them carries, and what a plan for them says."""

from __future__ import annotations

import pytest

from autoft.errors import OptionError
from autoft.planner.estimate import Range
from autoft.planner.estimator.target import several, target_of
from autoft.planner.plan.make import make_plan
from autoft.planner.timing.allreduce import Network, Replicas, link_of, together
from autoft.planner.timing.gpu_rates import gpu_rates
from autoft.planner.timing.network import SHARE, UNKNOWN_GBIT, network_link
from autoft.planner.timing.roofline import Timing
from autoft.profiles.detect import gpu_from_profile
from tests.planner.test_several_gpus import NOWHERE, model, request

__all__ = ["model"]  # a fixture


@pytest.mark.parametrize(
    ("name", "gbit"), [("10GbE", 10), ("2.5 Gbit/s", 2.5), ("100", 100), ("40gbps", 40), ("25G", 25)]
)
def test_a_network_is_named_as_people_call_it(name: str, gbit: float) -> None:
    link = network_link(name)
    assert (link.lower, link.upper) == pytest.approx((SHARE[0] * gbit * 1e9 / 8, SHARE[1] * gbit * 1e9 / 8))
    assert f"{gbit:g} Gbit/s" in link.what


def test_a_network_that_nobody_has_named_may_be_slow_or_quick() -> None:
    link = network_link(None)
    assert link.lower == network_link(str(UNKNOWN_GBIT[0])).lower
    assert link.upper == network_link(str(UNKNOWN_GBIT[1])).upper


@pytest.mark.parametrize("name", ["infinite", "0", "-1", "10 MB/s", "9999999"])
def test_what_is_no_speed_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="not a network's speed"):
        network_link(name)


def test_the_ring_is_as_quick_as_its_slowest_part() -> None:
    gpu = gpu_from_profile("rtx-3090")
    rates, timing = gpu_rates(gpu), Timing(step_s=Range(lower=1.0, upper=2.0), energy_wh=None, basis="")
    gradients, replicas = 10**9, Replicas(4, 2)
    for name in ("10GbE", "3200"):
        link = min(network_link(name), link_of(gpu), key=lambda each: each.upper)
        over = together(timing, gradients, replicas, gpu, rates, Network(2, network_link(name)))
        sent = 2 * 3 / 4 * gradients
        assert over.step_s.lower == pytest.approx(1.0 + sent / link.upper / 2)
        assert over.step_s.upper == pytest.approx(2.0 + sent / link.lower / 2)
        assert over.exchange is not None
        assert link.what in over.exchange.text


def test_processes_of_a_host_without_a_gpu_share_its_cpu_and_no_other() -> None:
    timing = Timing(step_s=Range(lower=1.0, upper=2.0), energy_wh=None, basis="")
    rates = gpu_rates(gpu_from_profile("rtx-3090"))
    alone = together(timing, 0, Replicas(4), None, rates)
    spread = together(timing, 0, Replicas(4), None, rates, Network(2, network_link("10")))
    assert (alone.step_s.lower, spread.step_s.lower) == (4.0, 2.0)


def test_a_plan_for_two_hosts(model) -> None:
    plan, _ = make_plan(request(model, gpu="rtx-3060 x2", settings=("hosts=2", "link=10GbE", "micro_batch=1")), NOWHERE)
    assert (plan.job.num_gpus, plan.job.hosts, plan.job.link) == (4, 2, "10GbE")
    assert plan.place == "2 hosts with 2 x NVIDIA GeForce RTX 3060 (12.0 GiB)"
    assert any("10 Gbit/s between hosts" in text for text in plan.estimate.assumptions)
    here, _ = make_plan(request(model, gpu="rtx-3060 x2", settings=("num_gpus=2", "micro_batch=1")), NOWHERE)
    # a host has the RAM for its own processes, not for those of the other
    assert plan.estimate.host_bytes["train"] == here.estimate.host_bytes["train"]
    assert plan.estimate.device_bytes == here.estimate.device_bytes
    assert any("2 hosts with 2 x" in reason.text for reason in plan.reason_records)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("hosts=2", "num_gpus=3"), "num_gpus=3: not as many on each of 2 hosts"),
        (("hosts=2", "num_gpus=6"), "num_gpus=6: planned for 2 hosts with 2 x"),
        (("link=10GbE",), "--link 10GbE is the network between hosts, and there is one"),
        (("hosts=2", "link=fast"), "--link fast: not a network's speed"),
    ],
)
def test_what_cannot_be_planned_is_refused(model, settings: tuple[str, ...], what: str) -> None:
    with pytest.raises(OptionError, match=what):
        make_plan(request(model, gpu="rtx-3060 x2", settings=settings), NOWHERE)


def test_hosts_in_words() -> None:
    assert several(1, "a card") == "a card"
    assert several(2, "a card") == "2 x a card"
    assert several(2, "a card", 2) == "2 hosts with a card"
    assert several(4, "a card", 2) == "2 hosts with 2 x a card"


def test_a_target_on_several_hosts_counts_all_cards() -> None:
    def flops(*_: object) -> float:
        return 1e9

    target = target_of(NOWHERE, gpu_name="rtx-3060 x2", vram_gib=None, cpu_flops_per_s=flops, hosts=3)
    assert (target.num_gpus, target.on_each_host(6), target.using(6).available_bytes) == (6, 2, target.available_bytes)
    cpu = target_of(NOWHERE, gpu_name="cpu", vram_gib=None, cpu_flops_per_s=flops, hosts=2)
    assert (cpu.num_gpus, cpu.device_bytes(100, 2), cpu.device_bytes(100, 4)) == (2, 100, 200)
