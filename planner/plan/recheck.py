"""Does a plan from a file still hold? Rehearsed anew as it stands there, on the machine, model and data of now."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from autoft.errors import DoesNotFit, FileFormatError, ModelError
from autoft.planner.estimate import Estimate, Range
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import Target, several, target_of
from autoft.planner.facts import Reason
from autoft.planner.history.correction import correction_for, warnings
from autoft.planner.plan.provenance import Inputs, inputs_of, job_digest
from autoft.planner.plan.record import Plan
from autoft.planner.search import parallel
from autoft.planner.search.candidates import describe
from autoft.planner.search.hyperparameters import mean_length, rows_of, run_takes, steps_of
from autoft.planner.search.sequence_length import check_length
from autoft.planner.timing.allreduce import Replicas
from autoft.planner.timing.roofline import measure_cpu_flops
from autoft.planner.workload import Workload, measure
from autoft.profiles.detect import gpu_from_profile
from autoft.profiles.hardware import Hardware
from autoft.profiles.model_shape import ModelShape
from autoft.trainer.checks.gates import refuse_unknown_tokens
from autoft.trainer.data.prepare import Prepared, prepare
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_config, resolve
from autoft.units import size

LESS_MEMORY = 0.95  # of what could be used when the plan was made; a little comes and goes
EDITED = Reason(key="edit", text="[job] was edited by hand after these reasons were given")


@dataclass(frozen=True, slots=True)
class Rechecked:
    """plan: with estimate, workload and inputs as of now. notes: what is not as it was, a sentence each."""

    plan: Plan
    prepared: Prepared
    notes: tuple[str, ...]


def recheck(
    planned: Plan, job: Job, hardware: Hardware, *, where: str, force: bool = False, apart: bool = False
) -> Rechecked:
    """The plan on this machine.

    Args:
        planned: as it stands in the file, which `where` names.
        job: its job, where the caller may have put other data.
        force: go on although it does not fit.
        apart: rehearse in another process, so that this one can train on a GPU; see parallel.apart.

    Raises: InputError when the job cannot be run at all, ModelError among them for another model than planned;
    DoesNotFit with the figures.
    """
    assert job.data is not None
    recipe, ref, target = job.recipe, resolve(job.model), _target(planned, job, hardware, where)
    estimator = Estimator(job.model, load_config(ref), target)
    _refuse_another_model(planned, estimator.shape, where)
    word = f"{where}: job.recipe.seq_len = {recipe.seq_len}"
    check_length(recipe.seq_len, estimator, recipe.rope_scaling, word=word, error=FileFormatError)
    prepared = prepare(
        ref,
        job.data,
        job.eval_data,
        eval_rows=job.eval_rows,
        max_tokens=recipe.seq_len,
        mapping=job.mapping,
        thinking=job.thinking,
        new_tokens=recipe.new_tokens,
    )
    refuse_unknown_tokens(prepared, recipe.vocabulary(estimator.shape.vocab_size), estimator.shape.name)

    def rehearse() -> tuple[Estimate, tuple[int, Range, Range | None]]:
        step = estimator.estimate(recipe, replicas=Replicas(job.num_gpus, job.accumulation))
        return step, _whole_run(job, prepared, estimator)

    estimate, whole_run = parallel.apart(rehearse) if apart else rehearse()
    inputs, workload = inputs_of(job, ref), measure(prepared)
    edited = planned.inputs is not None and job_digest(planned.job) != planned.inputs.job_sha256
    notes = [
        *_edit_notes(planned.estimate, estimate, edited=edited),
        *_input_notes(planned, inputs, workload),
        *_device_notes(planned, target),
    ]
    if estimate.fits != "yes":
        problem = _problem(recipe, estimate, target)
        if not force:
            raise DoesNotFit(
                "; ".join([f"{where}: {problem}", *notes]),
                fix="undo the edit, free memory, or plan again; --force runs it all the same",
            )
        notes.append(f"--force: {problem}")
    correction = correction_for(target, estimate, recipe)
    notes += warnings(correction, estimate) if correction is not None else []
    steps, run_time_s, run_energy_kwh = whole_run
    plan = replace(
        planned,
        target=target.name,
        card=target.card,
        reasons=((*planned.reasons, EDITED.text) if edited else planned.reasons),
        reason_records=((*planned.reason_records, EDITED) if edited else planned.reason_records),
        steps=steps,
        run_time_s=run_time_s,
        run_energy_kwh=run_energy_kwh,
        job=job,
        estimate=estimate,
        workload=workload,
        inputs=inputs,
        correction=correction,
    )
    return Rechecked(plan, prepared, tuple(notes))


def _whole_run(job: Job, prepared: Prepared, estimator: Estimator) -> tuple[int, Range, Range | None]:
    """(optimizer steps, seconds, kWh), rehearsed at the length of the mean micro-batch."""
    recipe = job.recipe
    rows = rows_of(prepared, recipe.seq_len, packing=recipe.packing)
    steps = steps_of(job, rows)
    assert rows is not None
    assert steps is not None
    together = recipe.micro_batch * job.num_gpus
    padded = rows.padded(together, together * job.accumulation, grouped=job.group_by_length)
    mean = replace(recipe, seq_len=mean_length(recipe, padded))
    estimate = estimator.estimate(mean, replicas=Replicas(job.num_gpus, job.accumulation))
    return steps, *run_takes(estimate, steps * job.accumulation)


def _target(planned: Plan, job: Job, hardware: Hardware, where: str) -> Target:
    if planned.job.device == "cuda" and not hardware.gpus:
        why = f": {hardware.no_gpu_reason}" if hardware.no_gpu_reason else ""
        raise ModelError(
            f"the plan is for {planned.target}, and there is no GPU here{why}",
            fix="run it there, or plan with --gpu cpu",
        )
    name = "cpu" if planned.job.device == "cpu" else None
    target = target_of(
        hardware,
        gpu_name=name,
        vram_gib=None,
        cpu_flops_per_s=functools.cache(measure_cpu_flops),
        hosts=job.hosts,
        link=job.link,
    )
    if target.gpu is not None and job.num_gpus > target.num_gpus:
        raise ModelError(
            f"{where}: job.num_gpus = {job.num_gpus} is more than there are here of one kind: "
            f"{several(target.num_gpus, target.card, target.hosts)}",
            fix=f"job.num_gpus = {target.num_gpus}, or plan again",
        )
    return target.using(job.num_gpus)


def _refuse_another_model(planned: Plan, shape: ModelShape, where: str) -> None:
    now, then = shape.to_dict(), planned.shape.to_dict()
    different = [key for key in now if key != "name" and now[key] != then[key]]
    if different:
        figures = ", ".join(f"{key} is {now[key]} here, {then[key]} in the plan" for key in different[:3])
        raise ModelError(
            f"{where}: made for a different model than {planned.job.model}: {figures}",
            fix=f"plan again with {planned.job.model}, or set job.model to the model that was planned",
        )


def _edit_notes(then: Estimate, now: Estimate, *, edited: bool) -> list[str]:
    figures = f"it needs {size(now.device_bytes)}, as planned {size(then.device_bytes)}"
    if edited:
        return [f"[job] was edited since it was planned: {figures}"]
    return [f"the estimate has changed: {figures}"] if size(then.device_bytes) != size(now.device_bytes) else []


def _input_notes(planned: Plan, now: Inputs, workload: Workload) -> list[str]:
    """Of a plan from before the inputs were written down only the rows can be compared."""
    then, notes = planned.inputs, []
    data = ("data_sha256", "eval_data_sha256")
    rows, old = _counts(workload), _counts(planned.workload)
    changed = rows != old if then is None else any(getattr(then, name) != getattr(now, name) for name in data)
    if planned.workload is not None and changed:
        kinds = ("rows to train on", "held out", "tokens in the longest")
        figures = ", ".join(f"{b} {kind} ({a} then)" for kind, a, b in zip(kinds, old, rows, strict=True))
        notes.append(f"the data is not what was planned with: {figures}")
    if then is not None and then.adapter_sha256 != now.adapter_sha256:
        notes.append("the adapter that it continues has changed since the plan was made")
    if then is not None and then.model_config_sha256 != now.model_config_sha256:
        notes.append("the model's configuration has changed since the plan was made")
    if then is not None and then.versions != now.versions:
        names = tuple(dict.fromkeys((*then.versions, *now.versions)))
        pairs = ((name, then.versions.get(name, "none"), now.versions.get(name, "none")) for name in names)
        words = ", ".join(f"{name} {new} ({old} then)" for name, old, new in pairs if old != new)
        notes.append(f"other versions than the plan was made with: {words}")
    return notes


def _device_notes(planned: Plan, target: Target) -> list[str]:
    then, now = planned.estimate.available_bytes, target.available_bytes
    there, here = planned.card, target.card
    profile = target.gpu.profile if target.gpu is not None else None
    notes = []
    if there not in (here, gpu_from_profile(profile).name if profile else here):
        notes.append(f"planned for {there}, and this is {here}")
    if now < LESS_MEMORY * then:
        processes = target.gpu.processes if target.gpu is not None else ()
        holder = max(processes, key=lambda process: process.used_bytes or 0, default=None)
        held = ""
        if holder is not None and holder.used_bytes:
            held = f"; {holder.name or 'a process'} (pid {holder.pid}) holds {size(holder.used_bytes)}"
        notes.append(f"less memory than planned for: {size(now)} usable now, {size(then)} then{held}")
    return notes


def _problem(recipe: Recipe, estimate: Estimate, target: Target) -> str:
    need, room = estimate.device_bytes, estimate.available_bytes
    tight = ", or only just, as PyTorch gives cached blocks back" if estimate.fits == "tight" else ""
    return (
        f"{describe(recipe)}, {recipe.seq_len} tokens, needs {size(need)}, {size(need - room)} more than usable "
        f"on {target.card} ({size(room)}){tight}"
    )


def _counts(workload: Workload | None) -> tuple[int, ...]:
    return (workload.rows, workload.heldout_rows, workload.longest_tokens) if workload else ()
