"""The sentences of a plan, made of its figures. Nothing reads them but people: a new wording changes nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.planner.estimate import Estimate, ServingEstimate
from autoft.planner.facts import Figures, Reason
from autoft.planner.search.candidates import base_bits, describe, describe_base, state_bits
from autoft.trainer.adapters import kind_of
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.units import GIB, pace, size

if TYPE_CHECKING:
    from autoft.planner.alternative import Alternative

# Shares of the usable memory, our own: a run that needs more than EDGE has no room for what was not foreseen
CLOSE, EDGE = 0.85, 0.95


def fits(recipe: Recipe, estimate: Estimate) -> Reason:
    """How much of what is usable it takes."""
    used, usable = estimate.device_bytes, estimate.available_bytes
    return Reason(
        key="fit",
        text=f"{describe(recipe)} fits: {of_usable(estimate)}",
        figures={"device_bytes": used, "available_bytes": usable},
    )


def of_usable(estimate: Estimate) -> str:
    """7.46 of 7.53 GiB usable (99%); of several GPUs "usable on each GPU"."""
    each = " on each GPU" if estimate.num_gpus > 1 and estimate.host_bytes else ""  # replicas on a CPU share its RAM
    return share(estimate.device_bytes, estimate.available_bytes, each)


def share(used: int, usable: int, each: str = "") -> str:
    """7.46 of 7.53 GiB usable (99%), of bytes; `each` follows "usable"."""
    amounts = f"{used / GIB:.2f} of {usable / GIB:.2f} GiB" if used >= GIB else f"{size(used)} of {size(usable)}"
    percent = f" ({used / usable:.0%})" if usable else ""
    return f"{amounts} usable{each}{percent}"


def closeness(estimate: Estimate | ServingEstimate) -> str:
    """How near the limit it runs, the margin left aside, which is kept free in any case."""
    used, usable = estimate.device_bytes, estimate.available_bytes
    if estimate.fits == "tight":
        return "borderline, fits only if the allocator frees its cache"
    if used > usable:
        return "does not fit"
    if used > EDGE * usable:
        return "at the edge"
    return "close" if used > CLOSE * usable else "comfortable"


def batch(job: Job) -> str:
    """4 sequences x 2,048 tokens (1 x 4 accumulation)."""
    recipe = job.recipe
    rows = job.num_gpus * recipe.micro_batch * job.accumulation
    gpus = f"{job.num_gpus} GPUs x " if job.num_gpus > 1 else ""
    plural = "s" * (rows != 1)
    return (
        f"{rows} sequence{plural} x {recipe.seq_len:,} tokens ({gpus}{recipe.micro_batch} x {job.accumulation} "
        "accumulation)"
    )


def rate(learning_rate: float) -> str:
    """2e-4."""
    digits, _, power = f"{learning_rate:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def modules(recipe: Recipe) -> str:
    """The layers that get an adapter, or where else it is: "on all-linear"."""
    if not kind_of(recipe).on_layers:
        return "before every row"
    names = recipe.target_modules
    return f"on {names if isinstance(names, str) else ', '.join(names)}"


def no_other() -> Reason:
    return Reason(key="prefer", text="the settings leave no other candidate")


def preferred(prefer: str, order: str) -> Reason:
    return Reason(key="prefer", text=f"--prefer {prefer}: {order}", figures={"prefer": prefer})


def base_kept() -> Reason:
    """Where no 4-bit base was worth a rehearsal, or none fits."""
    return Reason(key="method", text="unquantized base: it fits, so quantization would only cost quality")


def base_beside(recipe: Recipe, other: Recipe, estimate: Estimate, time_ratio: float) -> Reason:
    """A base beside one of other bits that fits too. estimate: of the other; time_ratio: its time over the chosen."""
    bits = base_bits(recipe)
    only = "only " if bits == 16 and time_ratio < 1 else ""  # too little for what fewer bits cost
    times = f"{only}{pace(time_ratio)}" if pace(time_ratio) != pace(1.0) else pace(1.0)
    return Reason(
        key="method",
        text=f"{_of_bits(bits)}: {describe(other)} would be {times} ({size(estimate.device_bytes)})",
        figures={"bits": bits, "time_ratio": time_ratio, "device_bytes": estimate.device_bytes},
    )


def base_needed(recipe: Recipe, other: Recipe, device_bytes: int) -> Reason:
    """Fewer bits, as the smallest recipe of a whole base takes too much."""
    bits = base_bits(recipe)
    return Reason(
        key="method",
        text=f"{bits}-bit base, needed to fit: the smallest unquantized one, {describe(other)}, "
        f"takes {size(device_bytes)}",
        figures={"bits": bits, "device_bytes": device_bytes},
    )


def base_needed_for_weights(recipe: Recipe, other: Recipe, weights_bytes: int) -> Reason:
    """Fewer bits, as a whole base's weights alone take too much."""
    bits = base_bits(recipe)
    return Reason(
        key="method",
        text=f"{bits}-bit base, needed to fit: {weights_alone(other, weights_bytes)}",
        figures={"bits": bits, "weights_bytes": weights_bytes},
    )


def weights_alone(recipe: Recipe, weights_bytes: int) -> str:
    return f"{describe_base(recipe)}: its weights alone take {size(weights_bytes)}"


def checkpointing_pays(without: Recipe, time_ratio: float) -> Reason:
    """Checkpointing where something fits without. time_ratio: of that over the chosen."""
    return Reason(
        key="gradient_checkpointing",
        text="gradient checkpointing, for the larger micro-batch: without it, the largest that fits is "
        f"{describe(without)}, {pace(time_ratio)}",
        figures={"micro_batch": without.micro_batch, "time_ratio": time_ratio},
    )


def checkpointing_needed(without: Recipe, device_bytes: int) -> Reason:
    return Reason(
        key="gradient_checkpointing",
        text="gradient checkpointing, needed to fit: without it, "
        f"micro-batch {without.micro_batch} takes {size(device_bytes)}",
        figures={"micro_batch": without.micro_batch, "device_bytes": device_bytes},
    )


def resident(recipe: Recipe, estimate: Estimate) -> str:
    """What a recipe takes that keeps every layer on the GPU."""
    return f"{describe(recipe)}: {size(estimate.device_bytes)}"


def streaming_needed(recipe: Recipe, estimate: Estimate, on_gpu: str) -> Reason:
    """Layers that wait on the host, as nothing fits without. on_gpu: what the closest of that takes, in words."""
    ram, layers = estimate.ram_to_train, recipe.streamed_layers
    return Reason(
        key="streamed_layers",
        text=f"streams {layers} layers from host RAM ({size(ram)} in all), needed to fit: {on_gpu}",
        figures={"streamed_layers": layers, "host_bytes": ram},
    )


def loss_only() -> Reason:
    """No answers are generated in evaluations of a plan that streams layers."""
    return Reason(
        key="max_new_tokens",
        text="evaluations take the loss only: each token of an answer would copy every streamed layer "
        "(--set max_new_tokens=128 generates answers)",
    )


def state_needed(recipe: Recipe, heavier: Recipe, device_bytes: int) -> Reason:
    """An optimizer with less state. device_bytes: with the heavier one."""
    why = "optimizer state in 8 bits, which learns as well as 32 (arXiv:2110.02861)"
    if state_bits(recipe) == 0:
        why = "Adafactor, which keeps a number a row and a column instead of two a weight (arXiv:1804.04235)"
    return Reason(
        key="optimizer",
        text=f"{why}: with {heavier.optimizer} this micro-batch takes {size(device_bytes)}",
        figures={"device_bytes": device_bytes},
    )


def beside(less_bytes: int, time_ratio: float, bits: int | None = None) -> str:
    """Gain and loss of an alternative that fits: "2.9 GiB less memory, but 12% slower".

    less_bytes: that it takes less than the chosen; time_ratio: its time over the chosen's. bits: of its base, positive
    where they are more than the chosen's, negative where they are fewer; None where they are the same.
    """
    gains: list[str] = []
    losses: list[str] = []
    (gains if less_bytes > 0 else losses).append(
        f"{size(abs(less_bytes))} {'less' if less_bytes > 0 else 'more'} memory"
    )
    (gains if time_ratio < 1 else losses).append(pace(time_ratio))
    if bits is not None:
        (gains if bits > 0 else losses).append(f"a base in {abs(bits)} bits")
    return ", but ".join(", ".join(words) for words in (gains, losses) if words)


def instead(alternative: Alternative, chosen: Estimate) -> str:
    """Gain and loss in short, "12% slower, 2.9 GiB less"; of what does not fit why not."""
    if alternative.role == "rejected" or alternative.time_ratio is None:
        return alternative.reason
    less = chosen.device_bytes - alternative.estimate.device_bytes
    return f"{pace(alternative.time_ratio)}, {size(abs(less))} {'less' if less > 0 else 'more'}"


def needs(estimate: Estimate) -> str:
    """Of what does not fit, or only just."""
    if estimate.fits == "no" and estimate.device_bytes <= estimate.available_bytes:
        return f"needs {size(estimate.ram_to_train)} of host RAM, more than is free"
    over = size(estimate.device_bytes - estimate.available_bytes)
    why = f"{over} more than usable"
    if estimate.fits == "tight":
        why = "borderline: fits only if the allocator frees its cache in every step (slow)"
    return f"needs {size(estimate.device_bytes)}, {why}"


def one_gpu(num_gpus: int, other: Recipe, time_ratio: float) -> Reason:
    """One of several GPUs. num_gpus, other: the quickest that takes more; time_ratio: of that over the chosen."""
    return Reason(
        key="num_gpus",
        text=f"1 of the GPUs: {num_gpus} ({describe(other)}) would be {pace(time_ratio)}",
        figures={"num_gpus": num_gpus, "time_ratio": time_ratio},
    )


def several_gpus(place: str, num_gpus: int, rows: int, one: tuple[Recipe, float] | None) -> Reason:
    """Data parallel. rows: of a step, on each GPU. one: what one GPU would do, and the chosen's time over its."""
    text = f"{place}, data parallel: each has the whole model and {rows} of a step's {num_gpus * rows} rows"
    figures: Figures = {"num_gpus": num_gpus, "rows": rows}
    if one is not None:
        recipe, time_ratio = one
        text += f"; {than(time_ratio, 'one GPU')} ({describe(recipe)})"
        figures["time_ratio"] = time_ratio
    return Reason(key="num_gpus", text=text, figures=figures)


def than(time_ratio: float, other: str) -> str:
    """1.8x faster than one GPU; as fast as one GPU."""
    words = pace(time_ratio)
    return f"as fast as {other}" if words == pace(1.0) else f"{words} than {other}"


def _of_bits(bits: int) -> str:
    return "unquantized base" if bits == 16 else f"{bits}-bit base"
