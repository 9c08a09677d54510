"""`make_plan`: from a model, data and a machine to the Plan."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from autoft import __version__
from autoft.errors import HubError, InputError, OptionError
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import Target, like, target_of_request
from autoft.planner.facts import Reason, sentences
from autoft.planner.plan.exact import pinned_length, seq_len_for
from autoft.planner.plan.not_tried import not_tried
from autoft.planner.plan.prefetch import Reading, prepare_options
from autoft.planner.plan.provenance import inputs_of
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.planner.search import parallel
from autoft.planner.search.assumed_tokens import prepare_assumed
from autoft.planner.search.candidates import families
from autoft.planner.search.continued import adapter_of, check_fits, reason
from autoft.planner.search.gpu_count import counts_of, notes_of, plan_counts, with_counts
from autoft.planner.search.hyperparameters import MIN_STEPS, rows_of, schedule, steps_of
from autoft.planner.search.kinds import kind_reasons
from autoft.planner.search.new_tokens import vocabulary, with_token_ids
from autoft.planner.search.preset import Defaults, preset_of
from autoft.planner.search.problem import Limits, Question, check_limits, limited
from autoft.planner.search.remedies import nothing_fits
from autoft.planner.search.sequence_length import check_length, length_notes, longest_row
from autoft.planner.search.served import serving_notes
from autoft.planner.search.set_option import parse_settings
from autoft.planner.search.words import loss_only
from autoft.planner.workload import Workload, measure
from autoft.profiles.hardware import Hardware
from autoft.profiles.nvidia import NO_DRIVER
from autoft.settings import settings_of
from autoft.trainer.adapters import ADAPTERS
from autoft.trainer.checks.gates import refuse_unknown_tokens
from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.evaluation.metrics import applicable
from autoft.trainer.job import Job
from autoft.trainer.model.build import refused_by_peft
from autoft.trainer.recipe import PAD_MULTIPLE, Recipe, applies
from autoft.trainer.sources.resolve import ModelRef, load_config, resolve
from autoft.trainer.sources.suitable import has_towers
from autoft.trainer.storage.places import public_name


@dataclass(frozen=True, slots=True)
class Asked:
    """A Question, and what a Plan tells of how it came about."""

    question: Question
    preset: Defaults
    prepared: Prepared | None
    workload: Workload | None
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]
    words: dict[str, str]  # how the user pinned fields of the Recipe, by field
    counts: list[int]  # of GPUs, to plan for
    loss_only_streamed: bool  # where layers are streamed, unless the user has set how long answers may be


def make_plan(
    request: Request, hardware: Hardware, reading: Reading | None = None, *, apart: bool = False
) -> tuple[Plan, Prepared | None]:
    """The Plan, and the tokenized data it was made for (None without data).

    Args:
        reading: of the data, begun already.
        apart: rehearse in another process, so that this one can train on a GPU; see parallel.apart.

    Raises: InputError of several kinds; DoesNotFit when no candidate fits.
    """
    taken = ask(request, hardware, reading, rehearse=not apart)
    if apart:
        return parallel.apart(lambda: _plan_of(taken, request, hardware)), taken.prepared
    return _plan_of(taken, request, hardware), taken.prepared


def _plan_of(asked: Asked, request: Request, hardware: Hardware) -> Plan:
    taken, tried = plan_counts(asked.question, asked.counts)
    question, search = taken.question, taken.search
    if taken.choice is None:
        raise nothing_fits(question, search, asked.words)
    choice = with_counts(taken, tried, question.target.card)
    job = question.job_of(choice.recipe)
    of_answers: tuple[Reason, ...] = ()
    if asked.loss_only_streamed and job.recipe.streamed_layers and job.metric == "loss":
        job, of_answers = replace(job, max_new_tokens=0), (loss_only(),)
    estimate = question.estimator.with_kernels(choice.recipe, choice.estimate, question.replicas(choice.recipe))
    reasons = (*choice.reasons, *asked.reasons, *of_answers)
    run_time_s, run_energy_kwh = question.run_takes(choice.recipe)
    return Plan(
        autoft_version=__version__,
        target=question.target.name,
        card=question.target.card,
        prefer=question.prefer,
        preset=asked.preset.name,
        reasons=sentences(reasons),
        reason_records=reasons,
        pruned=(*(group.text for group in search.pruned), *not_tried(job, choice.estimate, search)),
        notes=(*asked.notes, *(record.text for record in estimate.assumption_records if record.kind == "kernels")),
        steps=steps_of(job, question.rows),
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
        job=job,
        estimate=estimate,
        shape=question.estimator.shape,
        workload=asked.workload,
        hardware=_lasting(hardware),
        alternatives=choice.alternatives,
        inputs=inputs_of(job, resolve(request.model)),
    )


def ask(request: Request, hardware: Hardware, reading: Reading | None = None, *, rehearse: bool = True) -> Asked:
    """What the request comes to for its model, data and device.

    Args:
        reading: as make_plan has it.
        rehearse: whether steps may be rehearsed in this process while the data is read.

    Raises: InputError of several kinds.
    """
    recipe_pins, job_pins = parse_settings(request.settings)
    words = _words(request, recipe_pins)
    begun = adapter_of(request, recipe_pins)
    if begun is not None:
        recipe_pins = {**recipe_pins, **begun.settings}
    asked_length = pinned_length(request, recipe_pins)
    preset = preset_of(request, {*recipe_pins, *job_pins}, asked_length)
    ref = resolve(request.model)
    recipe_pins = with_token_ids(recipe_pins, ref)
    job_pins = {**preset.job, **job_pins}
    scaling = recipe_pins.get("rope_scaling")
    whole = target_of_request(request, hardware, hosts=job_pins.get("hosts", 1), link=job_pins.get("link"))
    limits = _limits(request, whole)
    estimator = Estimator(request.model, load_config(ref), limited(whole, limits.memory_gib))
    shape = estimator.shape
    if begun is not None:
        check_fits(begun, estimator.config)
    if asked_length is not None:
        check_length(asked_length, estimator, scaling, word=f"--seq-len {asked_length}", error=OptionError)
    most = asked_length or longest_row(shape, scaling)
    if request.data is not None and reading is not None and rehearse:
        _get_ready(estimator, recipe_pins, reading)
    new_tokens = recipe_pins.get("new_tokens", ())
    prepared = _prepared(request, ref, prepare_options(request, job_pins, most, new_tokens), reading)
    if prepared is not None:
        refuse_unknown_tokens(prepared, vocabulary(recipe_pins, shape.vocab_size), shape.name)
    workload = measure(prepared) if prepared else None
    if preset.packing:
        longest = asked_length or seq_len_for(workload, shape, preset, scaling)
        preset = _packable(preset, estimator, prepared, longest, job_pins)
    seq_len = asked_length or seq_len_for(workload, shape, preset, scaling)
    if asked_length is None:
        check_length(seq_len, estimator, scaling, word=f"the longest row ({seq_len} tokens)", error=OptionError)
    method, adapter = (recipe_pins.get(name, settings_of(Recipe)[name].default) for name in ("method", "adapter"))
    from_preset = {name: value for name, value in preset.recipe.items() if applies(name, method, adapter)}
    recipe_pins = _with_rank({**from_preset, **recipe_pins}, request.min_rank, words)
    served = serving_notes(request.served_by, recipe_pins)
    rows = rows_of(prepared, seq_len, packing=bool(recipe_pins.get("packing")))
    starter = (request.model, request.data) == ("starter", "starter")
    kind = None if method == "full" else ADAPTERS[adapter]
    planned, sources = schedule(starter, workload, rows, seq_len, adapter=kind)
    job, preset = _measurable({**planned, **job_pins}, preset, prepared)
    num_gpus = job.pop("num_gpus", None)
    about = {name: getattr(request, name) for name in Request.__dataclass_fields__ if name in settings_of(Job)}
    question = Question(
        estimator=estimator,
        whole=whole,
        seq_len=seq_len,
        rows_per_step=job.pop("rows_per_step"),
        pinned=recipe_pins,
        job={**about, **job},
        rows=rows,
        prefer=preset.prefer,
        limits=limits,
    )
    counts = counts_of(question, num_gpus)
    seq_len_counts = asked_length is None and (workload is None or preset.packing)
    reasons = (
        *(reason for name, reason in sources.items() if name not in {**job_pins, **recipe_pins}),
        *preset.reasons(seq_len_counts=seq_len_counts),
        *kind_reasons(recipe_pins),
        *([] if begun is None else [reason(begun, public_name(str(request.from_adapter)))]),
    )
    cut = prepared is not None and bool(prepared.train.too_long) and most == shape.max_position
    notes = (
        *_notes(prepared, seq_len),
        *length_notes(seq_len, estimator, scaling, cut=cut),
        *preset.notes(),
        *_adapter_notes(estimator),
        *served,
        *notes_of(question, counts, num_gpus),
        *_machine_notes(request, hardware),
    )
    loss_only_streamed = "max_new_tokens" not in job_pins
    return Asked(question, preset, prepared, workload, reasons, notes, words, counts, loss_only_streamed)


def _limits(request: Request, whole: Target) -> Limits:
    limits = Limits(hours=request.max_hours, energy_kwh=request.max_energy_kwh, memory_gib=request.max_memory_gib)
    power_known = whole.gpu is not None and whole.gpu.tdp_w is not None
    check_limits(limits, has_data=request.data is not None, power_known=power_known)
    return limits


def _prepared(request: Request, ref: ModelRef, options: dict[str, Any], reading: Reading | None) -> Prepared | None:
    """The data in tokens; in assumed ones where no tokenizer can be had and the user agrees. None without data."""
    if request.data is None:
        return None
    try:
        return (reading or prepare)(ref, request.data, request.eval_data, **options)
    except HubError:
        if ref.profile is None or not request.assume_tokens:
            raise
        return prepare_assumed(ref, request.data, request.eval_data, options)


def _measurable(job: dict[str, Any], preset: Defaults, prepared: Prepared | None) -> tuple[dict[str, Any], Defaults]:
    """The job with a metric that its answers can have. Raises: OptionError where the user asked for another."""
    unsuited = _unsuited(job, prepared)
    if unsuited is None:
        return job, preset
    if "metric" not in preset.job:
        raise OptionError(
            f"metric={job['metric']}: {unsuited}", fix="--set metric=loss, or a metric of what the answers are"
        )
    return {**job, "metric": "loss"}, replace(preset, unmeasured=unsuited)


def _adapter_notes(estimator: Estimator) -> list[str]:
    notes, num = [], estimator.shape.tower_params
    refused = sorted(refused_by_peft(estimator.config.model_type))
    if refused:
        notes.append(f"{' and '.join(refused)} of its Mamba layers get no adapter: PEFT refuses them")
    if num:
        notes.append(f"trained on text: its parts for images and audio ({num / 1e9:.2f}B weights) load but stay frozen")
    elif has_towers(estimator.config):
        notes.append("trained on text: only its language model is loaded, not its parts for images and audio")
    return notes


def _get_ready(estimator: Estimator, pins: dict[str, Any], reading: Reading) -> None:
    """While the data is read: what rehearsals import, and the models that are rehearsed whatever the data is."""
    with suppress(InputError):  # met again, and told, where the candidates are looked at
        first, *others = families(
            estimator.target,
            seq_len=PAD_MULTIPLE,
            rows_per_step=1,
            attention=estimator.attention,
            experts=estimator.shape.expert_params > 0,
            pinned=pins,
        )
        estimator.rehearse(first.recipes[0])
        for family in others:
            if family.base != first.base or reading.done:
                return
            estimator.rehearse(family.recipes[0])


def _words(request: Request, pins: dict[str, Any]) -> dict[str, str]:
    """How the user pinned what of the Recipe, the sequence's length aside."""
    typed = {word.partition("=")[0].strip(): word for word in request.settings}
    return {name: f"--set {typed[name]}" for name in pins if name != "seq_len"}


def _with_rank(pins: dict[str, Any], least: int | None, words: dict[str, str]) -> dict[str, Any]:
    """The pins with a rank of at least `least`. Raises: OptionError where the user has set a smaller one."""
    rank = pins.get("rank", Recipe.__dataclass_fields__["rank"].default)
    if least is not None and pins.get("method") == "full":
        raise OptionError("--min-rank: full fine-tuning has no adapter", fix="leave out --min-rank or method=full")
    if least is not None and not applies("rank", "lora", pins.get("adapter", "lora")):
        adapter = pins["adapter"]
        raise OptionError(f"--min-rank: {adapter} has no rank", fix=f"leave out --min-rank or adapter={adapter}")
    if least is None or rank >= least:
        return pins
    if "rank" in words:
        raise OptionError(f"{words['rank']} and --min-rank {least} exclude each other", fix="leave out one of them")
    alpha = {} if "alpha" in words else {"alpha": 2.0 * least}
    return {**pins, "rank": least, **alpha}


def _packable(
    preset: Defaults, estimator: Estimator, prepared: Prepared | None, seq_len: int, job_pins: dict[str, Any]
) -> Defaults:
    """The preset, without its packing where the model or the data is not made for that."""
    if not estimator.takes(Recipe(packing=True, attention=estimator.attention)):
        return preset.without_packing("this model cannot keep packed examples apart")
    rows = rows_of(prepared, seq_len, packing=True)
    if rows is not None and len(rows.lengths) * job_pins.get("epochs", 1.0) < MIN_STEPS:
        return preset.without_packing(f"{len(rows.lengths)} packed rows are too few for {MIN_STEPS} optimizer steps")
    return preset


def _unsuited(job: dict[str, Any], prepared: Prepared | None) -> str | None:
    """Why the job's metric tells nothing of its answers, None where it does."""
    metric = job.get("metric", "loss")
    if metric == "loss":
        return None
    if job.get("max_new_tokens") == 0:
        return "no answers are generated (max_new_tokens is 0)"
    rows = prepared.splits.heldout if prepared else []
    expected = [row.messages[-1]["content"] for row in rows if row.messages]
    if rows and metric not in applicable(expected):
        return f"{metric.replace('_', ' ')} says nothing about the held-out answers"
    return None


def _notes(prepared: Prepared | None, seq_len: int) -> tuple[str, ...]:
    if prepared is None:
        return (f"no --data: assuming sequences of {seq_len:,} tokens",)
    return tuple(prepared.notes(seq_len))


def _machine_notes(request: Request, hardware: Hardware) -> tuple[str, ...]:
    """What to know of this machine; nothing where the plan is for a card that was named."""
    if request.gpu is not None:
        return ()
    if not hardware.gpus and hardware.no_gpu_reason not in (None, NO_DRIVER):
        return (*hardware.notes, f"planned for the CPU: {hardware.no_gpu_reason}")
    beside = [gpu.name for gpu in hardware.gpus if gpu not in like(hardware.gpus)]
    unlike = (f"not used beside the others: {', '.join(beside)}; all GPUs of a run must be of one kind",)
    return (*hardware.notes, *(unlike if beside else ()))


def _lasting(hardware: Hardware) -> Hardware:
    """The machine without clocks, temperatures and the like, which a plan does not depend on."""
    return replace(hardware, gpus=tuple(replace(gpu, status=None, unknown={}) for gpu in hardware.gpus))
