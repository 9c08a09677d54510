"""Where does each figure of a Plan come from? Its recipe rehearsed once more, with what to tell of it noted down."""

from __future__ import annotations

import functools

from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of
from autoft.planner.explain.figures import Figure, explain
from autoft.planner.memory.recording import record
from autoft.planner.plan.exact import Answer
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.planner.timing.allreduce import Replicas
from autoft.planner.timing.roofline import measure_cpu_flops
from autoft.profiles.hardware import Hardware
from autoft.trainer.sources.resolve import load_config, resolve


def explain_plan(plan: Plan, request: Request, hardware: Hardware) -> tuple[Figure, ...]:
    """Every byte figure of the plan's Estimate. request, hardware: that the plan was made for."""
    target = target_of(
        hardware,
        gpu_name=request.gpu,
        vram_gib=request.vram_gib,
        cpu_flops_per_s=functools.cache(measure_cpu_flops),
        hosts=plan.job.hosts,
        link=plan.job.link,
    ).using(plan.job.num_gpus)
    estimator = Estimator(request.model, load_config(resolve(request.model)), target)
    recipe = plan.job.recipe
    replicas = Replicas(plan.job.num_gpus, plan.job.accumulation)
    rehearsal = estimator.rehearse(recipe, replicas=replicas)
    estimate = estimator.estimate_of(recipe, rehearsal, replicas=replicas)
    answer = Answer(recipe, estimate, target, estimator, rehearsal)
    return explain(record(rehearsal, estimator.allocator()), answer)
