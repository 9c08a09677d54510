"""How long do several GPUs take to sum their gradients, and with that a step? A range, of the link between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoft.planner.estimate import Range
from autoft.planner.facts import Assumption, Figures
from autoft.planner.timing.pcie import pcie_of
from autoft.planner.timing.roofline import HOST_LINK_BYTES_PER_S, Rates, Timing
from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.profiles.hardware import Gpu
from autoft.units import duration, size

# What a ring gets of a link, least and most. 56 of 63 GB/s were measured between two cards that reach each other over
# PCIe 5.0 (voipmonitor/rtx6kpro, hardware/pcie-bandwidth.md). Assumption: GeForce cards, which do not, go through the
# host's memory and share its way there, and get no less than a fifth; NVLink gives no less than half.
PCIE_SHARE = (0.2, 0.9)
NVLINK_SHARE = (0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Replicas:
    """num_gpus: each has the whole model. accumulation: micro-batches that each has in an optimizer step."""

    num_gpus: int = 1
    accumulation: int = 1


ALONE = Replicas()


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """bytes/s that each GPU of a ring sends and receives at once, and what that goes over, in words."""

    lower: float
    upper: float
    what: str


@dataclass(frozen=True, slots=True)
class Network:
    """hosts: machines with as many GPUs each. link: between them."""

    hosts: int
    link: Link


def link_of(gpu: Gpu) -> Link:
    """Between cards of this kind. NVLink, which may be there or not, is the upper bound where nobody has looked."""
    profile, status, known = gpu_profiles().get(gpu.profile or ""), gpu.status, pcie_of(gpu)
    what = known[1] if known else "PCIe"
    pcie = (known[0], known[0]) if known else HOST_LINK_BYTES_PER_S
    lower, upper = PCIE_SHARE[0] * pcie[0], PCIE_SHARE[1] * pcie[1]
    bridged = profile.nvlink_bytes_per_s.value / 2 if profile and profile.nvlink_bytes_per_s else None
    looked = status.nvlink_active if status is not None else None
    if bridged is None or looked == 0:
        return Link(lower=lower, upper=upper, what=what)
    if looked:
        return Link(lower=NVLINK_SHARE[0] * bridged, upper=NVLINK_SHARE[1] * bridged, what="NVLink")
    return Link(
        lower=lower, upper=max(upper, NVLINK_SHARE[1] * bridged), what=f"{what}, or NVLink where it is built in"
    )


def _slowest(gpu: Gpu | None, network: Network | None) -> Link:
    """Of a ring within hosts and across them."""
    links = [*([link_of(gpu)] if gpu is not None else []), *([network.link] if network is not None else [])]
    return min(links, key=lambda link: link.upper)


def together(
    timing: Timing, gradients: int, replicas: Replicas, gpu: Gpu | None, rates: Rates, network: Network | None = None
) -> Timing:
    """One GPU's micro-batch with its share of the exchange, and the energy of all.

    A ring sends 2 (n - 1) / n of all gradients through each GPU (Patarasuk and Yuan, 2009), once an optimizer step,
    when its last backward is done. gradients: bytes of all. gpu: None for replicas that share a CPU, which take turns.
    network: between the hosts, which the ring crosses: it is as quick as its slowest part.
    """
    num, step = replicas.num_gpus, timing.step_s
    if gpu is None:
        here = num if network is None else num // network.hosts
        step = Range(lower=here * step.lower, upper=here * step.upper)
        if network is None:
            text = f"exchange: {num} replicas share the CPU, no quicker than one"
            alone = Assumption(kind="exchange", basis="assumption", text=text, figures={"replicas": num})
            return replace(timing, step_s=step, exchange=alone)
    link = _slowest(gpu, network)
    sent = 2 * (num - 1) / num * gradients
    fast, slow = sent / link.upper, sent / link.lower
    step = Range(lower=step.lower + fast / replicas.accumulation, upper=step.upper + slow / replicas.accumulation)
    power, devices = rates.power_w, "GPUs" if gpu is not None else "processes"
    energy = (
        Range(lower=num * step.lower * power.lower / 3600, upper=num * step.upper * power.upper / 3600)
        if power
        else None
    )
    text = (
        f"exchange: gradients of {size(gradients)} are summed over {num} {devices} once an optimizer step, in "
        f"{duration(fast)} to {duration(slow)} at {link.lower / 1e9:.2g} to {link.upper / 1e9:.3g} GB/s ({link.what}, "
        "an assumption)"
    )
    figures: Figures = {"gradient_bytes": gradients, "lower_s": fast, "upper_s": slow}
    exchange = Assumption(kind="exchange", basis="assumption", text=text, figures=figures)
    return Timing(step_s=step, energy_wh=energy, basis=timing.basis, exchange=exchange)
