"""`make_plan`: from a model, data and a machine to the Plan. `make_estimate`: one exact recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from autoft import __version__
from autoft.errors import DoesNotFit, OptionError
from autoft.planner.candidates import candidates, parse_settings
from autoft.planner.choose import choose
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator import Estimator
from autoft.planner.ghost import Rehearsal
from autoft.planner.inputs import inputs_of
from autoft.planner.plan_file import Plan
from autoft.planner.preset import Defaults, defaults
from autoft.planner.request import Request
from autoft.planner.target import Target, target_of
from autoft.planner.time import measure_cpu_flops
from autoft.planner.workload import Workload, measure, refuse_another_tokenizer
from autoft.profiles.hardware import Hardware
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.data.pack import pack
from autoft.trainer.job import Job
from autoft.trainer.prepare import Prepared, prepare
from autoft.trainer.recipe import PAD_MULTIPLE, Recipe
from autoft.trainer.resolve import load_config, resolve
from autoft.units import size

DEFAULT_SEQ_LEN = 2048  # without data to look at
MIN_STEPS = 100  # optimizer steps that a run should have before its batch grows
MAX_ROWS_PER_STEP = 16
SMALL_DATA_ROWS = 1000  # fewer rows than this are gone over three times


@dataclass(frozen=True, slots=True)
class Answer:
    """An Estimate, and all that it was read from."""

    recipe: Recipe
    estimate: Estimate
    target: Target
    estimator: Estimator
    rehearsal: Rehearsal


def make_plan(request: Request, hardware: Hardware) -> tuple[Plan, Prepared | None]:
    """The Plan, and the tokenized data it was made for (None without data).

    Raises: InputError of several kinds; DoesNotFit when no candidate fits.
    """
    recipe_pins, job_pins = parse_settings(request.settings)
    seq_len = request.seq_len or recipe_pins.pop("seq_len", None)
    preset = _preset(request, {*recipe_pins, *job_pins}, seq_len)
    target = _target(request, hardware)
    ref = resolve(request.model)
    estimator = Estimator(request.model, load_config(ref), target)
    shape = estimator.shape
    _check_seq_len(seq_len, shape)
    job_pins = {**preset.job, **job_pins}
    prepared = None
    if request.data is not None:
        eval_rows = job_pins.get("eval_rows", Job.__dataclass_fields__["eval_rows"].default)
        max_tokens = seq_len or shape.max_position
        prepared = prepare(ref, request.data, request.eval_data, eval_rows=eval_rows, max_tokens=max_tokens)
        refuse_another_tokenizer(prepared, shape)
    workload = measure(prepared) if prepared else None
    if preset.packing:
        preset = _packable(preset, estimator, prepared, seq_len or _seq_len(workload, shape, preset), job_pins)
    seq_len_counts = seq_len is None and (workload is None or preset.packing)
    seq_len = seq_len or _seq_len(workload, shape, preset)
    recipe_pins = {**preset.recipe, **recipe_pins}
    rows = _rows(prepared, seq_len, packing=bool(recipe_pins.get("packing")))
    schedule = {**_schedule(request, workload, rows), **job_pins}
    rows_per_step = schedule.pop("rows_per_step")

    def estimates(seq_len: int) -> list[tuple[Recipe, Estimate]]:
        recipes = candidates(
            target, seq_len=seq_len, rows_per_step=rows_per_step, attention=estimator.attention, pinned=recipe_pins
        )
        taken = [recipe for recipe in recipes if estimator.takes(recipe)] or recipes[:1]
        # with several micro-batches a step, gradients live through the forward of the later ones
        return [(r, estimator.estimate(r, accumulate=r.micro_batch < rows_per_step)) for r in taken]

    try:
        choice = choose(estimates(seq_len), prefer=preset.prefer, target=target.name)
    except DoesNotFit as error:
        raise DoesNotFit(error.what, fix=_way_out(seq_len, estimates)) from None
    accumulation = schedule.pop("accumulation", max(1, rows_per_step // choice.recipe.micro_batch))
    job = Job.from_dict(
        {
            "model": request.model,
            "data": request.data,
            "eval_data": request.eval_data,
            "recipe": choice.recipe.to_dict(),
            "device": target.device,
            "accumulation": accumulation,
            **schedule,
        },
        where="--set",
    )
    steps = _steps(job, rows)
    run_time_s, run_energy_kwh = _run(choice.estimate, job, workload, steps)
    plan = Plan(
        autoft_version=__version__,
        target=target.name,
        prefer=preset.prefer,
        preset=preset.name,
        reasons=(*choice.reasons, *preset.reasons(seq_len_counts=seq_len_counts)),
        notes=(*_notes(prepared, seq_len), *preset.notes(), *_machine_notes(request, hardware)),
        steps=steps,
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
        job=job,
        estimate=choice.estimate,
        shape=shape,
        workload=workload,
        hardware=_lasting(hardware),
        alternatives=choice.alternatives,
        inputs=inputs_of(job, ref),
    )
    return plan, prepared


def make_estimate(request: Request, hardware: Hardware) -> Answer:
    """The Recipe that the settings describe, the device's defaults filled in, and its Estimate.

    Raises: InputError.
    """
    pins, job_pins = parse_settings(request.settings)
    if job_pins:
        raise OptionError(
            f"--set {next(iter(job_pins))}: no part of a recipe", fix="use it with `autoft plan` or `autoft run`"
        )
    target = _target(request, hardware)
    estimator = Estimator(request.model, load_config(resolve(request.model)), target)
    seq_len = request.seq_len or pins.get("seq_len")
    _check_seq_len(seq_len, estimator.shape)
    seq_len = seq_len or _seq_len(None, estimator.shape, Defaults())
    recipe = candidates(target, seq_len=seq_len, rows_per_step=1, attention=estimator.attention, pinned=pins)[0]
    rehearsal = estimator.rehearse(recipe)
    estimate = estimator.estimate_of(recipe, rehearsal)
    others = estimator.fits_by_gib(rehearsal, estimate.device_bytes)
    return Answer(recipe, replace(estimate, fits_by_gib=others), target, estimator, rehearsal)


def _target(request: Request, hardware: Hardware) -> Target:
    return target_of(
        hardware, gpu_name=request.gpu, vram_gib=request.vram_gib, cpu_flops_per_s=functools.cache(measure_cpu_flops)
    )


def _preset(request: Request, pinned: set[str], seq_len: int | None) -> Defaults:
    """What the request's preset sets that the request does not, and what to prefer."""
    options = {"seq_len": seq_len, "prefer": request.prefer}
    preset = defaults(request.preset, {*pinned, *(name for name, value in options.items() if value is not None)})
    return replace(preset, prefer=request.prefer or preset.prefer)


def _packable(
    preset: Defaults, estimator: Estimator, prepared: Prepared | None, seq_len: int, job_pins: dict[str, Any]
) -> Defaults:
    """The preset, without its packing where the model or the data is not made for that."""
    if not estimator.takes(Recipe(packing=True, attention=estimator.attention)):
        return preset.without_packing("this model cannot keep packed examples apart")
    rows = _rows(prepared, seq_len, packing=True)
    if rows is not None and rows * job_pins.get("epochs", 1.0) < MIN_STEPS:
        return preset.without_packing(f"{rows} packed rows are too few for {MIN_STEPS} optimizer steps")
    return preset


def _seq_len(workload: Workload | None, shape: ModelShape, preset: Defaults) -> int:
    """Room for the longest row, so that none is cut, and for as many tokens as the preset packs into one.

    Without data the preset's length, else DEFAULT_SEQ_LEN; never more than the model takes.
    """
    if workload is None:
        return min(preset.seq_len or DEFAULT_SEQ_LEN, shape.max_position)
    rounded = -(-workload.longest_tokens // PAD_MULTIPLE) * PAD_MULTIPLE
    return min(max(rounded, preset.seq_len or 0) if preset.packing else rounded, shape.max_position)


def _check_seq_len(seq_len: int | None, shape: ModelShape) -> None:
    if seq_len is not None and seq_len > shape.max_position:
        raise OptionError(
            f"--seq-len {seq_len} is more than {shape.name} was made for ({shape.max_position} tokens)",
            fix=f"--seq-len {shape.max_position} or less",
        )


def _schedule(request: Request, workload: Workload | None, packed: int | None) -> dict[str, Any]:
    """Epochs, learning rate and rows a step. packed: rows that the workload's share, as many if none does.

    The bundled task was tried with the starter model: one epoch at 1e-3. Otherwise 2e-4, the QLoRA paper's rate for
    models of 7B and 13B (arXiv:2305.14314, table 9), three epochs of small data and one of large.
    """
    rows = workload.rows if workload else 10 * SMALL_DATA_ROWS
    starter = (request.model, request.data) == ("starter", "starter")
    epochs = 1.0 if starter or rows >= SMALL_DATA_ROWS else 3.0
    schedule: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": 1e-3 if starter else 2e-4,
        "rows_per_step": _rows_per_step(int((packed or rows) * epochs)),
    }
    if workload is not None:
        schedule["max_new_tokens"] = _answer_room(workload)
    return schedule


def _rows_per_step(rows: int) -> int:
    """The largest power of two, up to MAX_ROWS_PER_STEP, that still leaves MIN_STEPS optimizer steps."""
    found = 1
    while found < MAX_ROWS_PER_STEP and rows // (2 * found) >= MIN_STEPS:
        found *= 2
    return found


def _answer_room(workload: Workload) -> int:
    """Tokens an answer may take in the evaluation: half as long again as the longest expected one, at most 512."""
    return min(512, -(-workload.longest_answer * 3 // 2 // 8) * 8)


def _rows(prepared: Prepared | None, seq_len: int, *, packing: bool) -> int | None:
    """Rows that an epoch trains on, which several examples share where they are packed."""
    if prepared is None:
        return None
    lengths = [len(example.input_ids) for example in prepared.train.examples]
    return len(pack(lengths, seq_len)) if packing else len(lengths)


def _steps(job: Job, rows: int | None) -> int | None:
    if rows is None:
        return None
    micro_batches = -(-rows // job.recipe.micro_batch)
    steps = round(job.epochs * -(-micro_batches // job.accumulation))
    return min(steps, job.max_steps) if job.max_steps else max(1, steps)


def _run(
    estimate: Estimate, job: Job, workload: Workload | None, steps: int | None
) -> tuple[Range | None, Range | None]:
    """(seconds, kWh) of the whole run: at least every row of the mean length, at most all as long as the longest.

    Packed rows are all of one length.
    """
    if workload is None or steps is None:
        return None, None
    most = steps * job.accumulation
    least = most if job.recipe.packing else most * min(1.0, workload.mean_tokens / job.recipe.seq_len)
    step, energy = estimate.step_time_s, estimate.step_energy_wh
    seconds = Range(lower=least * step.lower, upper=most * step.upper)
    if energy is None:
        return seconds, None
    return seconds, Range(lower=least * energy.lower / 1000, upper=most * energy.upper / 1000)


def _notes(prepared: Prepared | None, seq_len: int) -> tuple[str, ...]:
    if prepared is None:
        return (f"no data given: planned for sequences of {seq_len} tokens; name the data with --data",)
    return tuple(prepared.notes(seq_len))


def _machine_notes(request: Request, hardware: Hardware) -> tuple[str, ...]:
    """What to know of this machine; nothing where the plan is for a card that was named."""
    return hardware.notes if request.gpu is None else ()


def _lasting(hardware: Hardware) -> Hardware:
    """The machine without clocks, temperatures and the like, which a plan does not depend on."""
    return replace(hardware, gpus=tuple(replace(gpu, status=None, unknown={}) for gpu in hardware.gpus))


def _way_out(seq_len: int, estimates: Callable[[int], list[tuple[Recipe, Estimate]]]) -> str:
    """What would make something fit: the longest half, quarter, ... of the sequence that does."""
    shorter = seq_len // 2
    while shorter >= 128:
        need = min((e for _, e in estimates(shorter)), key=lambda e: e.device_bytes)
        if need.fits == "yes":
            return f"--seq-len {shorter} (needs {size(need.device_bytes)}), a smaller model, or a card with more memory"
        shorter //= 2
    return "a smaller model, or a card with more memory (--gpu NAME plans for one that is not here)"
