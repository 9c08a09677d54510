"""How long do copies of layers that wait on the host take, and how much of it does the layers' own work hide?"""

from __future__ import annotations

from dataclasses import replace

from autoft.planner.estimate import Range
from autoft.planner.facts import Assumption, Figures
from autoft.planner.timing.roofline import BASIS_KEYS, Rates, Timing, step_energy, step_timing
from autoft.planner.tracing.work import Work
from autoft.units import duration, size


def streamed(timing: Timing, copied: tuple[int, int], layer_work: tuple[Work, Work], rates: Rates) -> Timing:
    """One micro-batch with the copies that its layers' work does not hide.

    copied: bytes of the forward, and of the backward. layer_work: of all layers in the forward, and in the backward,
    which runs each forward again. A pass takes the longer of its work and its copies.
    """
    link, total = rates.host_link, sum(copied)
    least, most = total / link.upper, total / link.lower
    waits = [
        _wait(num_bytes, step_timing(work, 0, rates).step_s, rates)
        for num_bytes, work in zip(copied, layer_work, strict=True)
    ]
    wait = Range(lower=sum(each.lower for each in waits), upper=sum(each.upper for each in waits))
    step = Range(lower=timing.step_s.lower + wait.lower, upper=timing.step_s.upper + wait.upper)
    hidden = "all hidden behind the layers' work"
    if wait.upper:
        hidden = f"and the GPU waits {duration(wait.lower)} to {duration(wait.upper)} for them"
    text = (
        f"link: {size(total)} of weights come from the host in each micro-batch, in {duration(least)} to "
        f"{duration(most)} at {link.lower / 1e9:.2g} to {link.upper / 1e9:.2g} GB/s, {hidden}"
    )
    figures: Figures = {
        "bytes": total,
        "lower_s": least,
        "upper_s": most,
        "wait_lower_s": wait.lower,
        "wait_upper_s": wait.upper,
    }
    record = Assumption(kind="link", basis=BASIS_KEYS[link.basis], text=text, figures=figures)
    return replace(timing, step_s=step, energy_wh=step_energy(step, rates), link=record)


def _wait(num_bytes: int, work_s: Range, rates: Rates) -> Range:
    """Seconds that a pass waits for its copies. The quickest work meets the quickest link, the slowest the slowest."""
    link = rates.host_link
    lower, upper = num_bytes / link.upper - work_s.lower, num_bytes / link.lower - work_s.upper
    return Range(lower=max(0.0, min(lower, upper)), upper=max(0.0, lower, upper))
