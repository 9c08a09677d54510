"""Where does each figure of a Plan come from? Its recipe rehearsed once more, with what to tell of it noted down."""

from __future__ import annotations

from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import target_of_request
from autoft.planner.explain.figures import Figure, explain
from autoft.planner.memory.recording import record
from autoft.planner.plan.exact import Answer
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.planner.timing.allreduce import Replicas
from autoft.profiles.hardware import Hardware
from autoft.trainer.sources.resolve import load_config, resolve


def explain_plan(plan: Plan, request: Request, hardware: Hardware) -> tuple[Figure, ...]:
    """Every byte figure of the plan's Estimate. request, hardware: that the plan was made for."""
    whole = target_of_request(request, hardware, hosts=plan.job.hosts, link=plan.job.link)
    target = whole.using(plan.job.num_gpus)
    estimator = Estimator(request.model, load_config(resolve(request.model)), target)
    recipe = plan.job.recipe
    replicas = Replicas(plan.job.num_gpus, plan.job.accumulation)
    rehearsal = estimator.rehearse(recipe, replicas=replicas)
    estimate = estimator.estimate_of(recipe, rehearsal, replicas=replicas)
    answer = Answer(recipe, estimate, target, estimator, rehearsal)
    return explain(record(rehearsal, estimator.allocator()), answer)
