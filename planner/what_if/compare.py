"""The base in 16, 8 or 4 bits? The three methods side by side on one target, each at its best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from autoft.errors import ModelError, OptionError
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator.target import Target, target_of
from autoft.planner.rehearsal.rehearsal import Rehearsal
from autoft.planner.request import Request
from autoft.planner.search.parallel import beside
from autoft.planner.search.set_option import parse_settings
from autoft.planner.timing.roofline import measure_cpu_flops
from autoft.planner.what_if.context import METHOD_KEYS, Frame
from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.schema import Record
from autoft.trainer.recipe import Recipe
from autoft.trainer.run.measure import Steps

Name = Literal["lora", "int8", "qlora"]

CLASS_CARD_GIB = 24.0  # of a card to ask "how much would do?" for, where the target is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One method. pins: of the Recipe. when: to choose it. sources: of what it says."""

    name: Name
    label: str
    pins: dict[str, Any]
    when: str
    sources: tuple[str, ...]


WAYS = (
    Way(
        name="lora",
        label="LoRA",
        pins={"method": "lora", "quant_type": None, "double_quant": False},
        when="it fits: the base stays as it was published, and the adapter merges into the very weights that it was "
        "trained on",
        sources=("arXiv:2106.09685",),
    ),
    Way(
        name="int8",
        label="LoRA, 8-bit",
        pins={"method": "qlora", "quant_type": "int8", "double_quant": False},
        when="16 bits do not fit, 8 do, and the 4-bit base is measurably worse on your data (--measure): weights are "
        "rounded to 8 bits row by row, and what meets outliers is computed in 16",
        sources=("arXiv:2208.07339",),
    ),
    Way(
        name="qlora",
        label="QLoRA",
        pins={"method": "qlora", "quant_type": "nf4", "double_quant": True},
        when="memory decides: a larger model, a longer sequence or a smaller card. Its authors report the quality of "
        "16-bit fine-tuning; after a merge into the 16-bit base evaluate again, since that is another base",
        sources=("arXiv:2305.14314",),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(Record):
    """Real steps on this machine. recipe: what ran. predicted: for that very recipe. heldout_*: of the base, untrained.

    failed: why there is nothing else.
    """

    recipe: Recipe
    predicted_bytes: int
    predicted_step_s: Range
    steps: Steps | None = None
    failed: str | None = None
    heldout_rows: int = 0
    heldout_tokens: int = 0
    perplexity: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Side(Record):
    """One method at its best. Where fits is "no" recipe and estimate are of what comes closest.

    fits "refused": the model or the card cannot take it, `reason` says why.
    run_time_s, run_energy_kwh: of the whole run, without data of a million tokens.
    base_bytes: of the frozen base as it is held while training. adapter_bytes: the file that is written.
    deployment_bytes: weights to hold for serving, merged into the 16-bit base, or with the adapter beside a base.
    smallest_gib: the least memory of a common card that does, whatever the time; None where 80 GiB do not.
    """

    name: Name
    label: str
    when: str
    sources: tuple[str, ...]
    fits: Literal["yes", "no", "refused"]
    reason: str | None = None
    recipe: Recipe | None = None
    estimate: Estimate | None = None
    run_time_s: Range | None = None
    run_energy_kwh: Range | None = None
    base_bytes: int | None = None
    adapter_bytes: int | None = None
    deployment_bytes: dict[str, int] | None = None
    smallest_gib: int | None = None
    smallest_card: str | None = None
    measured: Measured | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Record):
    """run: what times and energies are of. plan_takes: the side that the plan would choose, None where none fits."""

    model: str
    target: str
    seq_len: int
    run: str
    plan_takes: Name | None
    sides: tuple[Side, ...]
    notes: tuple[str, ...] = ()


def refuse_pinned_method(request: Request) -> None:
    """Raises: OptionError where the settings leave no choice of the method."""
    pinned = sorted(METHOD_KEYS & parse_settings(request.settings)[0].keys())
    if pinned:
        raise OptionError(
            f"--set {pinned[0]}: a comparison is of all methods", fix="leave it out, or use autoft plan or estimate"
        )


def compare(frame: Frame) -> Comparison:
    """The three methods on the frame's target. Raises: OptionError where the settings pin one of them."""
    refuse_pinned_method(frame.request)
    # The plan chooses between 16 and 4 bits: one process rehearses and remembers both, another has the 8 bits
    shares = [[way for way in WAYS if way.name != "int8"], [way for way in WAYS if way.name == "int8"]]
    answers = beside(lambda ways: [_side(frame, way) for way in ways], shares, alone=frame.target.device != "cuda")
    by_name = {side.name: side for share in answers for side in share}
    sides = tuple(by_name[way.name] for way in WAYS)
    known = [side.estimate for side in sides if side.estimate is not None]
    return Comparison(
        model=frame.request.model,
        target=frame.target.name,
        seq_len=frame.seq_len,
        run=frame.run_of,
        plan_takes=_plan_takes(frame),
        sides=sides,
        notes=(*frame.problem.notes, *(known[0].assumptions if known else ())),
    )


def _side(frame: Frame, way: Way) -> Side:
    shown = {"name": way.name, "label": way.label, "when": way.when, "sources": way.sources}
    refusal = _no_kernels(frame.target, way)
    if refusal is not None:
        return Side(**shown, fits="refused", reason=refusal)  # type: ignore[arg-type]
    try:
        mine = frame.pinned(**way.pins)
        recipe, estimate = mine.best()
        rehearsal = mine.question.rehearse(recipe)
    except ModelError as error:
        return Side(**shown, fits="refused", reason=error.what)  # type: ignore[arg-type]
    run_time_s, run_energy_kwh = mine.run(recipe, estimate)
    gib = _smallest_gib(mine)
    base = sum(weight.size + sum(weight.state) for weight in rehearsal.weights if not weight.adapter)
    adapter = _adapter_bytes(recipe, rehearsal)
    whole = 2 * frame.estimator.shape.total_params
    forms = {"merged": whole, "on_16-bit_base": whole + adapter}
    if recipe.quant_type is not None:
        forms["on_quantized_base"] = base + adapter
    return Side(
        **shown,  # type: ignore[arg-type]
        fits="yes" if estimate.fits == "yes" else "no",
        recipe=recipe,
        estimate=estimate,
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
        base_bytes=base,
        adapter_bytes=adapter,
        deployment_bytes=forms,
        smallest_gib=gib,
        smallest_card=None if gib is None else _card_of(frame, gib),
    )


def _no_kernels(target: Target, way: Way) -> str | None:
    features = target.gpu.features if target.gpu is not None else None
    if features is None or way.name == "lora":
        return None
    bits, has = (8, features.bitsandbytes_int8) if way.name == "int8" else (4, features.bitsandbytes_4bit)
    return None if has else f"bitsandbytes has no {bits}-bit kernels for {target.name}"


def _plan_takes(frame: Frame) -> Name | None:
    recipe, estimate = frame.best()
    if estimate.fits != "yes":
        return None
    return "qlora" if recipe.method == "qlora" else "lora"


def _adapter_bytes(recipe: Recipe, rehearsal: Rehearsal) -> int:
    """Of the file: the adapter's weights as they are held."""
    return rehearsal.written_params * (4 if recipe.adapter_dtype == "float32" else 2)


def _smallest_gib(frame: Frame) -> int | None:
    """Of the common sizes the least that takes the leanest recipe; for a CPU on a card of bfloat16."""
    mine = frame
    if frame.target.gpu is None:
        target = target_of(
            replace(frame.hardware, gpus=()),
            gpu_name=None,
            vram_gib=CLASS_CARD_GIB,
            cpu_flops_per_s=measure_cpu_flops,
        )
        mine = frame.on(target)
    recipe, estimate = mine.closest()
    sizes = mine.estimator.without_tight().fits_by_gib(mine.question.rehearse(recipe), estimate.device_bytes)
    return next((int(gib) for gib, fits in sizes.items() if fits == "yes"), None)


def _card_of(frame: Frame, gib: int) -> str | None:
    """The quickest catalogue card of that memory, of the target's own kind where there is one."""
    cards = [p for p in gpu_profiles().values() if round(p.memory_gib.value) == gib and p.vendor == "nvidia"]
    own = frame.target.gpu.compute_capability if frame.target.gpu is not None else None
    cards = [card for card in cards if card.compute_capability == own] or [card for card in cards if card.native_bf16]
    quickest = max(cards, key=lambda card: card.half_flops_per_s.value if card.half_flops_per_s else 0, default=None)
    return quickest.name if quickest is not None else None
