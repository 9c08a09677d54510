"""A plan beside what earlier runs on its target measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autoft.errors import OutputError
from autoft.planner.estimator.target import target_of_request
from autoft.planner.history import past_runs
from autoft.planner.history.correction import correction_for, warnings
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.profiles.hardware import Hardware


def corrected(plan: Plan, request: Request, hardware: Hardware, say: Callable[[str], None]) -> Plan:
    """The plan with its Correction and what to note of it, where runs on the request's target say something of it.

    say: takes a line about a history that cannot be used.
    """
    try:
        aside = past_runs.put_aside()
    except OutputError as error:
        aside = f"the history of runs cannot be used: {error.what}"
    if aside is not None:
        say(f"Note: {aside}")
    target = target_of_request(request, hardware, hosts=plan.job.hosts, link=plan.job.link)
    correction = correction_for(target.using(plan.job.num_gpus), plan.estimate, plan.job.recipe)
    if correction is None:
        return plan
    notes = (*plan.notes, *warnings(correction, plan.estimate))
    return replace(plan, notes=notes, correction=correction)
