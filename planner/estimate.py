"""The Estimate: memory and time of one Recipe on one device. What every memory and time model here returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from autoft.planner.facts import Assumption
from autoft.schema import Record

Fits = Literal["yes", "tight", "no"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(Record):
    """From lower to upper, lower <= upper."""

    lower: float
    upper: float

    @property
    def middle(self) -> float:
        """The geometric middle: as many times above lower as below upper."""
        return math.sqrt(self.lower * self.upper)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate(Record):
    """Memory in bytes, time in seconds.

    method: how the memory was found. peak_allocated_bytes, peak_reserved_bytes: of a steady training step.
    num_gpus: replicas of the model, each on a GPU of its own; memory is that of one of them, tokens_per_s and
    step_energy_wh are of all together.
    device_bytes: what the run takes of the device in all, the runtime's own share included.
    available_bytes: what the device had to give. fits: against that.
    components: what lives at the peak, by kind; they add up to peak_allocated_bytes. phases: the peak of each phase.
    step_time_s: one micro-batch forward and backward, and an optimizer step; with several GPUs also the micro-batch's
    share of exchanging the gradients. tokens_per_s: at the middle of that range.
    step_energy_wh: what the device draws in that time; None where its power is not known.
    fits_by_gib: whether it fits a card with the same kernels and so much memory; where it was asked for.
    assumptions: what it takes for granted, in sentences. assumption_records: the same with kind and basis; none in an
    alternative, and in a file from before there were any.
    host_bytes, disk_bytes: RAM beside a GPU, and room on the disk, by phase; on a CPU the RAM is device_bytes.
    """

    method: Literal["rehearsal"]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_bytes: int
    available_bytes: int
    fits: Fits
    components: dict[str, int]
    phases: dict[str, int]
    step_time_s: Range
    tokens_per_s: float
    trainable_params: int
    total_params: int
    assumptions: tuple[str, ...]
    num_gpus: int = 1
    step_energy_wh: Range | None = None
    fits_by_gib: dict[str, Fits] = field(default_factory=dict)
    host_bytes: dict[str, int] = field(default_factory=dict)
    disk_bytes: dict[str, int] = field(default_factory=dict)
    assumption_records: tuple[Assumption, ...] = ()

    @property
    def ram_to_train(self) -> int:
        """Bytes of the host's memory beside a GPU, loading and training."""
        return max(self.host_bytes.get(phase, 0) for phase in ("load", "train"))

    @property
    def time_basis(self) -> str | None:
        """Where its time is from; None where it has no records."""
        return next((record.basis for record in self.assumption_records if record.kind == "time"), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingEstimate(Record):
    """Memory to answer with, in bytes.

    adapters: on the base, one of which answers; 0 is the base alone. prompts: read at once, of context_tokens each.
    peak_allocated_bytes, peak_reserved_bytes: while they are read, when the context is full. device_bytes,
    available_bytes, fits, fits_by_gib, assumptions, assumption_records: as Estimate has them.
    base_bytes: of the base's weights and quantization state. adapter_bytes: of one adapter. kv_cache_bytes: keys and
    values of all tokens, or what the model keeps in their place. total_params: of base and adapters.
    components: what lives at the peak, by kind; they add up to peak_allocated_bytes. phases: the peak of each phase.
    """

    adapters: int
    prompts: int
    context_tokens: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_bytes: int
    available_bytes: int
    fits: Fits
    base_bytes: int
    adapter_bytes: int
    kv_cache_bytes: int
    total_params: int
    components: dict[str, int]
    phases: dict[str, int]
    fits_by_gib: dict[str, Fits]
    assumptions: tuple[str, ...]
    assumption_records: tuple[Assumption, ...]

    @property
    def kv_cache_bytes_per_token(self) -> float:
        """Of one prompt; where only some layers keep every token, of a context this long."""
        return self.kv_cache_bytes / (self.prompts * self.context_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(Record):
    """A run that a correction is from. at: when it ended. ratio: measured over predicted."""

    at: str
    model: str
    ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio(Record):
    """Measured over predicted, of the runs in sources. same_recipe: all were of this very recipe and model shape."""

    median: float
    least: float
    most: float
    same_recipe: bool
    sources: tuple[Source, ...]

    def seconds(self, predicted: Range) -> Range:
        """To expect in place of a predicted range, of a step or of a whole run."""
        return Range(lower=predicted.middle * self.least, upper=predicted.middle * self.most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction(Record):
    """What to expect, going by runs on this device with these versions; None where too few tell.

    memory: ratio of what PyTorch reserved on a GPU, of what the process grew by on a CPU.
    device_bytes: expected in place of the Estimate's. fits: yes if even the most that was measured would fit, tight if
    only the expected does, no if not even that.
    time: ratio of a step's seconds, over the middle of the range. step_time_s: the Estimate's middle times the least
    and the most.
    exhausted: when runs that were predicted to need no more than this ran out of memory here.
    """

    memory: Ratio | None = None
    device_bytes: int | None = None
    fits: Fits | None = None
    time: Ratio | None = None
    step_time_s: Range | None = None
    exhausted: tuple[str, ...] = ()
