"""In what do two plans differ? What they run, what it takes, how long, and what they were made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from autoft.planner.plan.record import Plan
from autoft.schema import Record

Group = Literal["choice", "memory", "time", "inputs"]

TIMES = ("steps", "run_time_s", "run_energy_kwh", "estimate.step_time_s", "estimate.step_energy_wh")
RATES = ("estimate.tokens_per_s",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Record):
    """key: dotted path in the plan. a, b: the values there; None where the plan has none."""

    group: Group
    key: str
    a: Any
    b: Any


def differences(a: Plan, b: Plan) -> tuple[Difference, ...]:
    """Group by group, in the plan's own order.

    Left out: reasons, notes, assumptions and alternatives, which are words about the same figures, and what a machine's
    host happens to have free.
    """
    left, right = dict(_leaves(a)), dict(_leaves(b))
    keys = dict.fromkeys((*left, *right))
    pairs = ((key, left.get(key), right.get(key)) for key in keys)
    changes = [Difference(group=_group(key), key=key, a=x, b=y) for key, x, y in pairs if x != y]
    order = ("choice", "memory", "time", "inputs")
    return tuple(sorted(changes, key=lambda difference: order.index(difference.group)))


def _leaves(plan: Plan) -> Iterator[tuple[str, Any]]:
    data = plan.to_dict()
    host = data["hardware"]["host"]
    kept: dict[str, Any] = {name: data[name] for name in ("target", "prefer", "preset")}
    kept["job"] = data["job"]
    kept["estimate"] = {name: value for name, value in data["estimate"].items() if not name.startswith("assumption")}
    kept |= {name: data[name] for name in ("steps", "run_time_s", "run_energy_kwh", "workload", "shape")}
    kept["gpus"] = [gpu["name"] for gpu in data["hardware"]["gpus"]]
    kept["host"] = {name: host[name] for name in ("cpu", "cores", "ram_total_bytes", "system")}
    kept["autoft_version"] = data["autoft_version"]
    kept["inputs"] = {name: value for name, value in (data["inputs"] or {}).items() if name != "job_sha256"}
    yield from _flat("", kept)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or set(value) == {"lower", "upper"}:
        yield path, value
        return
    for name, part in value.items():
        yield from _flat(f"{path}.{name}" if path else name, part)


def _group(key: str) -> Group:
    if key in TIMES or key in RATES:
        return "time"
    if key.startswith("estimate."):
        return "memory"
    return "choice" if key.startswith("job.") or key in ("target", "prefer", "preset") else "inputs"
