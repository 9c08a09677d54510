"""The events of an optimizer's first step and of a steady one, its gradients clipped before."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch

from autoft.planner.kernels.dispatch import scratch
from autoft.planner.kernels.rules import Device
from autoft.planner.rehearsal.layers import Events, as_events
from autoft.planner.tracing.trace import KIND, Made, Trace, no_modes
from autoft.planner.tracing.work import Work
from autoft.trainer.compat.bitsandbytes import SYNC_GPU
from autoft.trainer.compat.torch import FUSED_CHECK
from autoft.trainer.optimizers import spec_of
from autoft.trainer.optimizers.optim import build_optimizer
from autoft.trainer.recipe import Optimizer, Recipe

CLIP_NORM = 1.0  # any norm: what is clipped does not change what is allocated
PAGED_ELEMENTS = 1e5  # bitsandbytes.optim.optimizer.get_state_buffer: smaller states stay on the device


@functools.lru_cache(maxsize=16)
def optimizer_events(
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...],
    name: Optimizer,
    device: Device,
    clip: bool,
    faster: frozenset[int] = frozenset(),
) -> tuple[Events, Events, list[int], int, list[Made], Work]:
    """(events of the first step, of a steady one, kinds of the keys, bytes of paged state, what made each key,
    work of a steady one).

    faster: places in `shapes` of weights in a group with a rate of its own, which is updated after the others.
    """
    parameters = [torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape, dtype in shapes]
    recipe = Recipe(optimizer=name)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    trace = Trace(scratch(device))
    for parameter in parameters:
        trace.ignore(parameter)
        assert parameter.grad is not None
        trace.ignore(parameter.grad)
    optimizer = build_optimizer(
        parameters,
        recipe,
        learning_rate=1e-4,
        foreach=device.cuda or None,
        faster=[parameters[at] for at in faster],
    )
    managed = 0
    spec = spec_of(name)
    if spec.paged and device.cuda:
        paged_optimizer: Any = optimizer
        on_device = paged_optimizer.get_state_buffer

        def state_buffer(p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            nonlocal managed
            if p.numel() < PAGED_ELEMENTS:
                return on_device(p, dtype)  # type: ignore[no-any-return]
            with no_modes():
                paged = torch.empty(p.shape, dtype=dtype, device="meta")
            trace.ignore(paged)
            managed += paged.numel() * paged.element_size()
            return paged

        paged_optimizer.get_state_buffer = state_buffer
    steps = []
    with ExitStack() as on_meta, trace:
        on_meta.enter_context(FUSED_CHECK.replaced_by(lambda *_, **__: None))  # of a device that has such a kernel
        if spec.state_bits == 8:  # bitsandbytes moves state and waits for a GPU: there is nothing to move
            bnb_optimizer: Any = optimizer
            bnb_optimizer.to_gpu = lambda: None
            on_meta.enter_context(SYNC_GPU.replaced_by(lambda _: None))
        for _ in range(2):
            trace.begin("optimizer")
            if clip:
                _clip(parameters, at_once=device.cuda)
            optimizer.step()
            steps.append(trace.sections[-1])
            for parameter in parameters:
                trace.ignore(parameter.grad)  # type: ignore[arg-type]
    kinds = [KIND["temporaries"]] * (steps[-1].first_key + len(steps[-1].kinds))
    for key in trace.live_keys():
        kinds[key] = KIND["optimizer"]
    made = [made for section in trace.sections for made in section.made]
    return as_events(steps[0].events), as_events(steps[1].events), kinds, managed, made, steps[1].work


def _clip(parameters: list[torch.nn.Parameter], *, at_once: bool) -> None:
    """torch.nn.utils.clip_grad_norm_; at once, as on a GPU, in its own two steps: it refuses to on meta."""
    if not at_once:
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    factor = CLIP_NORM / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)
    torch._foreach_mul_(gradients, torch.clamp(factor, max=1.0))
