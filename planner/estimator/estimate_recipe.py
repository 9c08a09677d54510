"""Estimates of one model on one target: each recipe rehearsed, its events replayed through the target's allocator."""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import replace
from typing import Any

from autoft.errors import ModelError
from autoft.planner.estimate import Estimate, Fits, Range, ServingEstimate
from autoft.planner.estimator.model_shape import model_shape
from autoft.planner.estimator.target import NCCL_BYTES, Target, usable_bytes
from autoft.planner.facts import Assumption, Figures, sentences
from autoft.planner.kernels.attention import TOKENS_PER_EXAMPLE, Backend
from autoft.planner.kernels.rules import INSTALLED_TORCH, Device
from autoft.planner.memory.allocator import Allocator, ByteCounter
from autoft.planner.memory.host import ASSUMPTION as HOST_ASSUMPTION
from autoft.planner.memory.host import disk_parts, host_parts, totals
from autoft.planner.memory.replay import Memory, least_bytes, replay, squeezed
from autoft.planner.rehearsal.answering import rehearse_answer
from autoft.planner.rehearsal.layers import Depth, depth_of, shortened
from autoft.planner.rehearsal.loading import off_device
from autoft.planner.rehearsal.loop import OURS, Loop
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.rehearsal.rehearse import Kept, find_depth, rehearse
from autoft.planner.rehearsal.replicas import gradient_bytes, replicated
from autoft.planner.timing.allreduce import ALONE, Replicas, together
from autoft.planner.timing.roofline import step_timing
from autoft.planner.timing.streaming import streamed
from autoft.planner.tracing.reference_code import kernel_packages
from autoft.planner.tracing.work import product_dtypes
from autoft.trainer.model.build import base_of, build_base, refuse_flash_attention, refuse_moving
from autoft.trainer.model.stream import copied_bytes, demand_layers
from autoft.trainer.recipe import Attention, Method, QuantType, Recipe, RopeScaling
from autoft.units import GIB, duration, size

COMMON_CARDS_GIB = (6, 8, 12, 16, 24, 32, 48, 80)
KEPT_REHEARSALS = 64  # about a megabyte each
NCCL = Assumption(
    kind="memory",
    basis="assumption",
    text=f"memory: {size(NCCL_BYTES)} a GPU are assumed, not measured, for NCCL's buffers, outside PyTorch's allocator",
    figures={"bytes": NCCL_BYTES},
)
OWN_SERVER = Assumption(
    kind="memory",
    basis="rehearsal",
    text="memory: for `autoft serve` and `autoft chat`; vLLM reserves the share of the GPU that it is started with",
)
UNKNOWN_CAPABILITY = (8, 0)  # assumption for a card of which only the memory is known


class Estimator:
    """Builds the model without storage once a question, and remembers the answer."""

    def __init__(self, name: str, config: Any, target: Target, *, torch: tuple[int, int] = INSTALLED_TORCH) -> None:
        """config: a transformers configuration. torch: release of PyTorch that runs the steps.

        Raises: ModelError when it is none of a causal language model.
        """
        self.config = config
        self.target = target
        self.attention, base = base_of(config)
        self.shape = model_shape(name, config, base)
        self.kernel_packages = kernel_packages(base)
        self.device = _device_of(target, torch)
        self._squeezes = True
        self._depth: dict[Attention, Depth | None] = {self.attention: depth_of(base, config)}
        self._kept = Kept()
        self._refusal: dict[
            tuple[Method, QuantType | None, bool, Attention, bool, RopeScaling | None, bool], ModelError | None
        ] = {}
        self._rehearsed: dict[tuple[Recipe, Loop, Backend | None, bool, bool], Rehearsal] = {}
        self._replayed: dict[int, Memory] = {}
        self._squeezed: dict[tuple[int, int], Memory | None] = {}

    @property
    def num_layers(self) -> int | None:
        """Of its decoder; None where it has no list of them."""
        depth = self._depth[self.attention]
        return None if depth is None else depth.layers

    def on(self, target: Target, *, same_kernels: bool = False) -> Estimator:
        """The same model on another device. Where that has the same kernels, what is remembered goes with it.

        same_kernels: take it for granted that it has.
        """
        torch = self.device.torch
        if not same_kernels and _device_of(target, torch) != self.device:
            elsewhere = Estimator(self.shape.name, self.config, target, torch=torch)
            elsewhere._squeezes = self._squeezes
            return elsewhere
        estimator = copy(self)
        estimator.target = target
        return estimator

    def without_tight(self) -> Estimator:
        """The same where "tight" is as good as "no": what gives cached blocks back at the limit is not replayed."""
        same = copy(self)
        same._squeezes = False
        return same

    def takes(self, recipe: Recipe) -> bool:
        """Whether the model can be trained by the recipe's method and attention at all."""
        return self._why_not(recipe) is None

    def estimate(
        self, recipe: Recipe, *, loop: Loop = OURS, backend: Backend | None = None, replicas: Replicas = ALONE
    ) -> Estimate:
        """Memory and time of `recipe`.

        loop: around the step. backend: of attention, pinned. Raises: ModelError when the model cannot take it.
        """
        rehearsal = self.rehearse(recipe, loop=loop, backend=backend, replicas=replicas)
        return self.estimate_of(recipe, rehearsal, loop, replicas)

    def rehearse(
        self, recipe: Recipe, *, loop: Loop = OURS, backend: Backend | None = None, replicas: Replicas = ALONE
    ) -> Rehearsal:
        """The events of loading and of two steps, of one of the replicas.

        Raises: ModelError when the model cannot take the recipe.
        """
        refusal = self._why_not(recipe)
        if refusal is not None:
            raise refusal
        if recipe.attention not in self._depth:
            self._depth[recipe.attention] = find_depth(recipe, self.config)
        accumulate, several = replicas.accumulation > 1, replicas.num_gpus > 1
        key = (recipe, loop, backend, accumulate, several)
        if key not in self._rehearsed and several:
            alone = Replicas(accumulation=replicas.accumulation)
            rehearsal = replicated(self.rehearse(recipe, loop=loop, backend=backend, replicas=alone))
            self._rehearsed[key] = rehearsal
        elif key not in self._rehearsed:
            if len(self._rehearsed) >= KEPT_REHEARSALS:
                self._rehearsed.clear()
                self._replayed.clear()
                self._squeezed.clear()
            self._rehearsed[key] = rehearse(
                recipe,
                self.config,
                self.device,
                depth=self._depth[recipe.attention],
                loop=loop,
                backend=backend,
                accumulate=accumulate,
                kept=self._kept,
            )
        return self._rehearsed[key]

    def estimate_of(
        self, recipe: Recipe, rehearsal: Rehearsal, loop: Loop = OURS, replicas: Replicas = ALONE
    ) -> Estimate:
        """Memory and time of `recipe`, which has been rehearsed for so many replicas."""
        memory, num_gpus = self.memory(rehearsal, loop), replicas.num_gpus
        device_bytes = self.target.device_bytes(memory.highest_reserved, num_gpus)
        work = rehearsal.work + rehearsal.optimizer_work
        fits, squeeze = self._fits(rehearsal, loop, device_bytes, self.target.available_bytes, num_gpus)
        rates = self.target.rates(product_dtypes(work), self.shape)
        timing = step_timing(work, rehearsal.managed_bytes, rates, rehearsal.offloaded_bytes)
        if recipe.streamed_layers:
            timing = streamed(timing, copied_bytes(rehearsal.streamed_bytes), rehearsal.layer_work, rates)
        if num_gpus > 1:
            timing = together(timing, gradient_bytes(rehearsal), replicas, self.target.gpu, rates, self.target.network)
        assumptions = (
            *squeeze,
            *self.target.assumptions,
            *_assumptions(recipe),
            *((self._of_reference_code(),) if self._runs_reference_code else ()),
            *((NCCL,) if self.device.cuda and num_gpus > 1 else ()),
            timing.basis,
            *(record for record in (timing.link, timing.exchange) if record),
            *((HOST_ASSUMPTION,) if self.device.cuda else ()),
        )
        return Estimate(
            method="rehearsal",
            peak_allocated_bytes=memory.allocated,
            peak_reserved_bytes=memory.reserved,
            device_bytes=device_bytes,
            available_bytes=self.target.available_bytes,
            fits=fits,
            components=memory.components,
            phases=memory.phases,
            step_time_s=timing.step_s,
            tokens_per_s=num_gpus * recipe.micro_batch * recipe.seq_len / timing.step_s.middle,
            step_energy_wh=timing.energy_wh,
            trainable_params=rehearsal.trainable_params,
            total_params=self.shape.total_params + sum(w.params if w.adapter else w.grown for w in rehearsal.weights),
            assumptions=sentences(assumptions),
            assumption_records=assumptions,
            num_gpus=num_gpus,
            host_bytes=self._host_bytes(rehearsal, num_gpus),
            disk_bytes=totals(disk_parts(rehearsal, self.shape.total_params)),
        )

    def serving(self, recipe: Recipe, adapters: int) -> ServingEstimate:
        """Memory to answer with a base and `adapters` adapters of `recipe`, on one device.

        micro_batch and seq_len of the recipe are the prompts read at once, and the tokens of context that each fills.
        Raises: ModelError when the model cannot take the recipe, or its cache cannot be rehearsed.
        """
        refusal = self._why_not(recipe)
        if refusal is not None:
            raise refusal
        if recipe.attention not in self._depth:
            self._depth[recipe.attention] = find_depth(recipe, self.config)
        rehearsal = rehearse_answer(
            recipe, self.config, self.device, depth=self._depth[recipe.attention], adapters=adapters, kept=self._kept
        )
        memory = replay(rehearsal, self.allocator())
        device_bytes = self.target.device_bytes(memory.highest_reserved)
        fits, _ = self._fits(rehearsal, OURS, device_bytes, self.target.available_bytes, 1)
        away = off_device(recipe, rehearsal.weights)
        there = [weight for weight in rehearsal.weights if weight.name not in away]
        base = (weight.size + sum(weight.state) for weight in there if not weight.adapter)
        assumptions = (
            *self.target.assumptions,
            *_assumptions(recipe),
            *((self._of_reference_code(),) if self._runs_reference_code else ()),
            OWN_SERVER,
        )
        return ServingEstimate(
            adapters=adapters,
            prompts=recipe.micro_batch,
            context_tokens=recipe.seq_len,
            peak_allocated_bytes=memory.allocated,
            peak_reserved_bytes=memory.reserved,
            device_bytes=device_bytes,
            available_bytes=self.target.available_bytes,
            fits=fits,
            base_bytes=sum(base),
            adapter_bytes=sum(weight.size for weight in there if weight.adapter),
            kv_cache_bytes=memory.components.get("kv_cache", 0),
            total_params=rehearsal.total_params,
            components=memory.components,
            phases={name: peak for name, peak in memory.phases.items() if name in ("load", "prompt")},
            fits_by_gib=self.fits_by_gib(rehearsal, device_bytes),
            assumptions=sentences(assumptions),
            assumption_records=assumptions,
        )

    def memory(self, rehearsal: Rehearsal, loop: Loop = OURS) -> Memory:
        """Of the rehearsed run, where the device has no limit."""
        if id(rehearsal) not in self._replayed:
            self._replayed[id(rehearsal)] = replay(rehearsal, self.allocator(loop))
        return self._replayed[id(rehearsal)]

    def with_kernels(self, recipe: Recipe, estimate: Estimate, replicas: Replicas = ALONE) -> Estimate:
        """The estimate with a range for its layers whose kernels other packages have; as it is where there are none.

        Its lower end: kernels keep their inputs and outputs alone, and take no time.
        """
        if not self._runs_reference_code:
            return estimate
        try:
            least = self.estimate(recipe, loop=replace(OURS, layer_kernels=True), replicas=replicas)
        except ModelError:
            return estimate  # said without figures
        in_figures = self._of_reference_code(estimate, least)
        records = tuple(in_figures if record.kind == "kernels" else record for record in estimate.assumption_records)
        return replace(estimate, assumption_records=records, assumptions=sentences(records))

    @property
    def _runs_reference_code(self) -> bool:
        return self.device.cuda and bool(self.kernel_packages)

    def _of_reference_code(self, estimate: Estimate | None = None, least: Estimate | None = None) -> Assumption:
        """What rehearsing in PyTorch's code means; in figures where the same recipe was rehearsed as with kernels."""
        packages = " and ".join(self.kernel_packages)
        text = "memory and time: some layers are rehearsed in PyTorch's code"
        if estimate is None or least is None:
            text += f"; with {packages} installed they take less"
            return Assumption(kind="kernels", basis="rehearsal", text=text, figures={"packages": packages})
        step_s = Range(lower=least.step_time_s.lower, upper=estimate.step_time_s.upper)
        text += (
            f"; with {packages} installed expect {size(least.device_bytes)} to {size(estimate.device_bytes)} and "
            f"{duration(step_s.lower)} to {duration(step_s.upper)} a step"
        )
        figures: Figures = {
            "packages": packages,
            "device_bytes_lower": least.device_bytes,
            "device_bytes_upper": estimate.device_bytes,
            "step_time_s_lower": step_s.lower,
            "step_time_s_upper": step_s.upper,
        }
        return Assumption(kind="kernels", basis="rehearsal", text=text, figures=figures)

    def _host_bytes(self, rehearsal: Rehearsal, num_gpus: int) -> dict[str, int]:
        if not self.device.cuda:
            return {}
        return totals(host_parts(rehearsal, self.shape.total_params, self.target.on_each_host(num_gpus)))

    def fits_by_gib(
        self, rehearsal: Rehearsal, device_bytes: int, loop: Loop = OURS, num_gpus: int = 1
    ) -> dict[str, Fits]:
        """Whether the run fits cards like this one with more or less memory, by their GiB; empty on a CPU."""
        if not self.device.cuda:
            return {}
        sizes = ((gib, usable_bytes(gib * GIB)) for gib in COMMON_CARDS_GIB)
        return {str(gib): self._fits(rehearsal, loop, device_bytes, available, num_gpus)[0] for gib, available in sizes}

    def _fits(
        self, rehearsal: Rehearsal, loop: Loop, device_bytes: int, available: int, num_gpus: int
    ) -> tuple[Fits, tuple[Assumption, ...]]:
        """(whether it fits, what to tell of it)."""
        if device_bytes <= available:
            return "yes", ()
        if not self._squeezes:
            return "no", ()
        shared = available if self.device.cuda else available // self.target.on_each_host(num_gpus)
        limit = max(0, shared - self.target.device_bytes(0, num_gpus))
        memory = self._memory_under(limit, rehearsal, loop)
        if memory is None:
            return "no", ()
        cost = (
            f"{memory.retries} times a step, {size(memory.given_back)} in all" if memory.retries else "before it trains"
        )
        text = f"memory: tight, fits only as PyTorch gives cached blocks back when the limit is met: {cost}"
        figures: Figures = {"times": memory.retries, "bytes": memory.given_back}
        return "tight", (Assumption(kind="memory", basis="rehearsal", text=text, figures=figures),)

    def _memory_under(self, limit: int, rehearsal: Rehearsal, loop: Loop) -> Memory | None:
        """As `memory`, the allocator giving cached blocks back at the limit; None where that is not enough."""
        key = (id(rehearsal), limit)
        if key not in self._squeezed:
            possible = least_bytes(rehearsal) <= limit
            self._squeezed[key] = squeezed(rehearsal, self.allocator(loop, limit)) if possible else None
        return self._squeezed[key]

    def allocator(self, loop: Loop = OURS, limit: int | None = None) -> Allocator | ByteCounter:
        """The device's, empty. limit: bytes that it can reserve."""
        if not self.device.cuda:
            return ByteCounter(limit_bytes=limit)
        # PyTorch has them on Linux alone; trainer/runtime/environment.py switches them on
        expandable = loop.expandable_segments and sys.platform == "linux"
        return Allocator(expandable_segments=expandable, limit_bytes=limit)

    def _why_not(self, recipe: Recipe) -> ModelError | None:
        try:
            if recipe.attention == "flash_attention_2":
                refuse_flash_attention(self.target.name, self.device.capability)
            refuse_moving(recipe, self.target.device)
            self._refuse_layers(recipe)
            self._refuse_virtual_tokens(recipe)
        except ModelError as error:
            return error
        key = (
            recipe.method,
            recipe.quant_type,
            recipe.experts_4bit,
            recipe.attention,
            recipe.packing,
            recipe.rope_scaling,
            recipe.streamed_layers > 0,
        )
        if key not in self._refusal:
            try:
                depth = self._depth.get(recipe.attention)
                base = build_base(recipe, shortened(self.config, depth.rehearsed) if depth else self.config)
                if recipe.streamed_layers:
                    demand_layers(base)
                self._refusal[key] = None
            except ModelError as error:
                self._refusal[key] = error
        return self._refusal[key]

    def _refuse_virtual_tokens(self, recipe: Recipe) -> None:
        """Raises: ModelError where rows and what stands before them are longer than the model's context."""
        room = self.shape.max_position - recipe.virtual_tokens
        if recipe.adapter == "prompt" and recipe.rope_scaling is None and recipe.seq_len > room:
            raise ModelError(
                f"virtual_tokens={recipe.virtual_tokens} and rows of {recipe.seq_len} tokens are more than "
                f"{self.shape.name} was made for ({self.shape.max_position} tokens)",
                fix=f"--seq-len {room} or less" if room > 0 else "--set virtual_tokens=20",
            )

    def _refuse_layers(self, recipe: Recipe) -> None:
        """Raises: ModelError for more streamed layers than there are."""
        if recipe.streamed_layers > (self.num_layers or 0):
            has = f"has {self.num_layers} layers" if self.num_layers else "has no list of layers to stream"
            raise ModelError(
                f"streamed_layers={recipe.streamed_layers}: {self.shape.name} {has}",
                fix=f"--set streamed_layers={self.num_layers}" if self.num_layers else "leave streamed_layers out",
            )


def _device_of(target: Target, torch: tuple[int, int]) -> Device:
    if target.gpu is None:
        return Device(None, None, torch)
    return Device(target.gpu.compute_capability or UNKNOWN_CAPABILITY, target.gpu.multiprocessors, torch)


def _assumptions(recipe: Recipe) -> list[Assumption]:
    """What the memory of a step depends on that only the values tell."""
    texts = []
    if recipe.quant_type == "int8":
        texts.append("memory: in 8-bit layers one column of a thousand is assumed to have outliers")
    if recipe.packing and recipe.attention == "flash_attention_2":
        texts.append(f"memory: packed examples are assumed to have {TOKENS_PER_EXAMPLE} tokens")
    return [Assumption(kind="memory", basis="assumption", text=text) for text in texts]
