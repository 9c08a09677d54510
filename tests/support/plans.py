"""Plans that several tests only look at: each question is planned for once a process.

Rehearsals are not shared behind the tests' backs, on the disk or between estimators: a key that misses a field would
give one test the answer of another, whichever ran first, and what the suite proves would depend on its order. A test
that shares says so here, and the planner's own caches have tests of their own (test_cache.py, test_plan_cache.py).
What made planning tests slow was the depth of their models; see shapes.py.
"""

from __future__ import annotations

import functools

from autoft.planner.plan.make import make_plan
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from tests.support.machines import NO_GPU


@functools.cache
def plan_of(request: Request) -> Plan:
    """The plan for a request without data, on the machine of tests/support/machines.py; a Plan is frozen."""
    assert request.data is None
    return make_plan(request, NO_GPU)[0]
