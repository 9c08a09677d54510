"""The Question: what is to be trained and where, all but the recipe. Asked again with less, it finds a way out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from autoft.errors import FileFormatError, OptionError
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import Target
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.request import Prefer
from autoft.planner.search.candidates import Family, base_bits, families, lighter
from autoft.planner.search.hyperparameters import Rows, mean_length, run_takes, steps_of
from autoft.planner.search.rank import SLOWER, Choice, choose, order
from autoft.planner.search.search import Candidate, Pruned, Search
from autoft.planner.timing.allreduce import Replicas
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.units import GIB, duration, energy

NO_8_BIT = (
    f"8-bit bases: 4 bits need less memory, and LLM.int8 takes some {SLOWER[8]:g} times as long as 16 bits do "
    "(--prefer quality or --set quant_type=int8 looks at them)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the user allows at most; None is no limit. hours, energy_kwh: of the whole run at its slowest."""

    hours: float | None = None
    energy_kwh: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """estimator: of the model on the device, with no more memory than the limits allow; whole: the device itself.

    pinned: fields of the Recipe. job: the Job without its recipe, as fields. rows: of an epoch; None without data.
    rows_per_step: sequences in an optimizer step, of all GPUs together. num_gpus: of the device's, how many train.
    """

    estimator: Estimator
    whole: Target
    seq_len: int
    rows_per_step: int
    pinned: dict[str, Any]
    job: dict[str, Any]
    rows: Rows | None
    prefer: Prefer
    limits: Limits = Limits()
    num_gpus: int = 1
    run_takes_memo: dict[Recipe, tuple[Range, Range | None]] = field(default_factory=dict, compare=False)

    @property
    def target(self) -> Target:
        """The device, with no more memory than the limits allow."""
        return self.estimator.target

    def on(self, target: Target) -> Question:
        """The same on another device, or with more of this one."""
        allowed = limited(target, self.limits.memory_gib)
        return replace(self, estimator=self.estimator.on(allowed), whole=target, run_takes_memo={})

    def spread(self, num_gpus: int) -> Question:
        """The same with a replica of the model on each of so many GPUs, which share out the rows of a step."""
        return replace(self.on(self.whole.using(num_gpus)), num_gpus=num_gpus)

    @property
    def rows_per_gpu(self) -> int:
        """Sequences of an optimizer step that each GPU has."""
        return max(1, self.rows_per_step // self.num_gpus)

    def families(self) -> list[Family]:
        """The candidates that the model can take; where it can take none, all, and an estimate tells why."""
        every = self._families()
        return [family for family in every if self.estimator.takes(family.recipes[0])] or every[:1]

    def streamed_families(self) -> list[Family]:
        """The same with all layers streamed from the host's memory; none where that cannot be.

        Only with the base that takes the least of that memory and of the link, unless --prefer quality.
        """
        layers, gpu = self.estimator.num_layers, self.target.gpu
        if gpu is None or gpu.unified_memory or not layers or "streamed_layers" in self.pinned:
            return []  # without a memory of its own there is nothing to stream from
        try:
            every = self._families(streamed_layers=layers)
        except FileFormatError:  # the settings exclude it
            return []
        taken = [family for family in every if self.estimator.takes(family.recipes[0])]
        if self.prefer == "quality":
            return taken
        whole = {family.base: self.weights_bytes(replace(family.recipes[0], streamed_layers=0)) for family in taken}
        return [family for family in taken if whole[family.base] == min(whole.values())]

    def _families(self, streamed_layers: int = 0) -> list[Family]:
        return families(
            self.target,
            seq_len=self.seq_len,
            rows_per_step=self.rows_per_gpu,
            attention=self.estimator.attention,
            experts=self.estimator.shape.expert_params > 0,
            streamed_layers=streamed_layers,
            pinned=self.pinned,
        )

    def lighter(self, recipe: Recipe) -> Recipe | None:
        """The same with less optimizer state on the device, None if there is none."""
        return lighter(recipe, self.target.device, self.pinned)

    def search(self) -> Search:
        """What was rehearsed to answer it."""
        search = self._new_search()
        wanted, slow = self._families_by_speed()
        if slow:
            search.pruned.append(Pruned(slow[0].recipes[0], NO_8_BIT))
        self._look_at(search, wanted)
        if not search.fitting:
            self._look_at(search, self.streamed_families())
            search.stream_least(lambda candidate: order(candidate, self.prefer))
        return search

    def _look_at(self, search: Search, wanted: list[Family]) -> None:
        for_memory = self.prefer == "memory"
        (search.smallest if for_memory else search.largest)(wanted)
        search.settle(wanted, lambda candidate: order(candidate, self.prefer), step=1 if for_memory else -1)

    def least(self) -> Search:
        """What was rehearsed to tell whether anything fits at all."""
        search = self._new_search()
        wanted, _ = self._families_by_speed()
        room = self.target.available_bytes
        search.least([family for family in wanted if self.weights_bytes(family.recipes[0]) <= room])
        if not search.fitting:
            search.least(self.streamed_families())
        return search

    def _families_by_speed(self) -> tuple[list[Family], list[Family]]:
        """(those to look at, those of 8-bit bases, which are left out as too slow)."""
        wanted = self.families()
        slow = [family for family in wanted if base_bits(family.recipes[0]) == 8]
        if len(slow) == len(wanted) or self.prefer == "quality":
            return wanted, []
        return [family for family in wanted if family not in slow], slow

    def _new_search(self) -> Search:
        return Search(
            estimate=self.estimate,
            device_bytes=self.device_bytes,
            available_bytes=self.target.available_bytes,
            context_bytes=self.target.device_bytes(0, self.num_gpus),
            weights_bytes=self.weights_bytes,
            padding=self.padded,
            lighter=self.lighter,
            ram_bytes=self.whole.ram_bytes,
            gpu=self.target.device == "cuda",
        )

    def choose(self, found: Search) -> Choice | None:
        """The best that fits and keeps to the limits."""
        return choose(
            list(found.found.values()), prefer=self.prefer, forbidden=self._forbidden, pruned=tuple(found.pruned)
        )

    def estimate(self, recipe: Recipe) -> Estimate:
        """With several micro-batches a step, gradients live through the forward of the later ones."""
        return self.estimator.estimate_of(recipe, self.rehearse(recipe), replicas=self.replicas(recipe))

    def device_bytes(self, recipe: Recipe) -> int:
        """What estimate says of it, at less cost."""
        memory = self.estimator.memory(self.rehearse(recipe))
        return self.target.device_bytes(memory.highest_reserved, self.num_gpus)

    def components(self, recipe: Recipe) -> dict[str, int]:
        """What estimate says of its peak."""
        return self.estimator.memory(self.rehearse(recipe)).components

    def rehearse(self, recipe: Recipe) -> Rehearsal:
        """As estimate has it."""
        return self.estimator.rehearse(recipe, replicas=self.replicas(recipe))

    def replicas(self, recipe: Recipe) -> Replicas:
        """How many there are of the model, and into how many micro-batches the step of each falls."""
        accumulation = self.job.get("accumulation", max(1, self.rows_per_gpu // recipe.micro_batch))
        return Replicas(self.num_gpus, accumulation)

    def weights_bytes(self, recipe: Recipe) -> int:
        """The least that the base's weights take: quantization state and what is not known of it left out."""
        shape, whole = self.estimator.shape, {"float32": 4}.get(recipe.weights_dtype, 2)
        held = {None: float(whole), "int8": 1.0}.get(recipe.quant_type, 0.5)
        experts = shape.expert_params if recipe.experts_4bit else 0
        in_layers = (shape.linear_params + experts) * held + (shape.expert_params - experts) * whole
        layers = self.estimator.num_layers or 1
        away = min(recipe.streamed_layers, layers) / layers
        around = shape.other_params - shape.expert_params
        if recipe.streamed_layers:  # embeddings stay on the host unless the head shares them
            around -= shape.vocab_size * shape.hidden_size
        return int(in_layers * (1 - away)) + around * whole

    def padded(self, micro_batch: int) -> float:
        """As Rows.padded; 1 without data. GPUs wait for the one that has the longest row."""
        if self.rows is None:
            return 1.0
        return self.rows.padded(
            micro_batch * self.num_gpus, self.rows_per_step, grouped=bool(self.job.get("group_by_length"))
        )

    def job_of(self, recipe: Recipe) -> Job:
        """The Job that trains by `recipe`. Raises: FileFormatError for a field that is wrong."""
        fields = {
            **self.job,
            "recipe": recipe.to_dict(),
            "device": self.target.device,
            "num_gpus": self.num_gpus,
            "accumulation": self.replicas(recipe).accumulation,
        }
        return Job.from_dict(fields, where="--set")

    def run_takes(self, recipe: Recipe) -> tuple[Range | None, Range | None]:
        """(seconds, kWh) of the whole run; None where not known. Rehearsed at the length of the mean micro-batch."""
        job = self.job_of(recipe)
        steps = steps_of(job, self.rows)
        if steps is None:
            return None, None
        if recipe not in self.run_takes_memo:
            mean = replace(recipe, seq_len=mean_length(recipe, self.padded(recipe.micro_batch)))
            self.run_takes_memo[recipe] = run_takes(self.estimate(mean), steps * job.accumulation)
        return self.run_takes_memo[recipe]

    def _forbidden(self, candidate: Candidate) -> str | None:
        if (self.limits.hours, self.limits.energy_kwh) == (None, None) or candidate.estimate.fits != "yes":
            return None
        seconds, kwh = self.run_takes(candidate.recipe)
        if self.limits.hours is not None and seconds is not None and seconds.upper > 3600 * self.limits.hours:
            return f"may take {duration(seconds.upper)}, more than --max-hours {self.limits.hours:g}"
        if self.limits.energy_kwh is not None and kwh is not None and kwh.upper > self.limits.energy_kwh:
            return f"may take {energy(kwh.upper)}, more than --max-energy-kwh {self.limits.energy_kwh:g}"
        return None


def limited(target: Target, memory_gib: float | None) -> Target:
    """The target with no more memory to use than the user allows."""
    if memory_gib is None:
        return target
    return replace(target, available_bytes=min(target.available_bytes, int(memory_gib * GIB)))


def check_limits(limits: Limits, *, has_data: bool, power_known: bool) -> None:
    """Raises: OptionError for a limit that cannot be kept to."""
    for option, value in (
        ("--max-hours", limits.hours),
        ("--max-energy-kwh", limits.energy_kwh),
        ("--max-memory", limits.memory_gib),
    ):
        if value is None:
            continue
        if not 0 < value < float("inf"):
            raise OptionError(f"{option} {value:g}: not a finite number above 0", fix="give a number above 0")
        if option != "--max-memory" and not has_data:
            raise OptionError(f"{option} needs the data to estimate the run", fix="--data FILE")
    if limits.energy_kwh is not None and not power_known:
        raise OptionError("--max-energy-kwh: the power of this device is not known", fix="use --max-hours")
