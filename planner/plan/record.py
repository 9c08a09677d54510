"""The Plan, and the file that carries it (its text is toml.py's)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from autoft.errors import FileFormatError
from autoft.home import write_text
from autoft.planner.alternative import Alternative
from autoft.planner.estimate import Correction, Estimate, Range
from autoft.planner.estimator.target import several
from autoft.planner.facts import Reason
from autoft.planner.plan.provenance import Inputs
from autoft.planner.workload import Workload
from autoft.profiles.hardware import Hardware
from autoft.profiles.model_shape import ModelShape
from autoft.schema import Record, parse_toml, read_text
from autoft.trainer.job import Job
from autoft.trainer.storage.places import private_job, public_name, without_paths

# Within a version keys are only added, each with a default that means what its absence meant, so older files load the
# same. A key that changes its meaning raises the version; read_plan then says of an older file which key to change.
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Record):
    """What to run and why. job is all that the trainer takes; the rest says how it was chosen.

    target: the device planned for, in words; of several GPUs (job.num_gpus), one of them. card: its name alone, the
    same on every day; "" in a file from before it was kept apart, which read_plan fills in.
    preset: the name of the one it was planned with.
    reasons: sentences. reason_records: the same with what each is about; none in a file from before there were any.
    pruned: what was not rehearsed, a sentence a group with its reason.
    steps: optimizer steps of the whole run, None without data.
    run_time_s, run_energy_kwh: of all its steps; evaluation is not in them. Energy is the device's, None where unknown.
    correction: what runs on this device make expect; the estimate stays as it is. None where they tell nothing.
    inputs: what it was made from; None in a file from before they were written down.
    """

    schema_version: Annotated[int, Ge(1)] = SCHEMA_VERSION
    autoft_version: str
    target: str
    card: str = ""
    prefer: str
    preset: str | None = None
    reasons: tuple[str, ...]
    reason_records: tuple[Reason, ...] = ()
    pruned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    steps: int | None = None
    run_time_s: Range | None = None
    run_energy_kwh: Range | None = None
    job: Job
    estimate: Estimate
    shape: ModelShape
    workload: Workload | None = None
    hardware: Hardware
    alternatives: tuple[Alternative, ...] = ()
    correction: Correction | None = None
    inputs: Inputs | None = None

    @property
    def place(self) -> str:
        """All devices planned for, in words."""
        return several(self.job.num_gpus, self.target, self.job.hosts)

    def public(self) -> Plan:
        """The plan as it may be published: without the paths of this machine and the serial numbers of its GPUs."""
        values = without_paths(self.to_dict(), self.job)
        host = values["hardware"]["host"]
        host["disk_path"] = public_name(host["disk_path"])
        for disk in host["disks"]:
            disk["path"] = public_name(disk["path"])
        for gpu in values["hardware"]["gpus"]:
            gpu["uuid"] = None
        return Plan.from_dict(values)

    def to_toml(self) -> str:
        """With comments, in the order in which a person wants it."""
        from autoft.planner.plan.toml import plan_toml

        return plan_toml(self)


def write_plan(plan: Plan, path: Path) -> None:
    """Write plan.toml, all of it or nothing."""
    write_text(path, plan.to_toml())


def read_plan(path: Path) -> Plan:
    """The plan in `path`; beside a run, with the paths that the run had here.

    Raises: FileFormatError for a file that is missing, broken, of a newer schema, or wrong (dotted path).
    """
    where = str(path)
    data = parse_toml(read_text(path), where=where)
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise FileFormatError(
            f"{where}: schema_version {version} is newer than this autoft reads ({SCHEMA_VERSION})",
            fix="update autoft, or plan again",
        )
    plan = Plan.from_dict(data, where=where)
    plan = plan if plan.card else replace(plan, card=_card_of_older(plan.target))
    return replace(plan, job=private_job(plan.job, path.parent))


def _card_of_older(target: str) -> str:
    """The card of an older file's target: "NVIDIA L4 (22.0 GiB)", "CPU (AMD EPYC, 2 cores, 8 GiB free)"."""
    if target.startswith("CPU ("):
        return f"{target.partition(',')[0]})"
    return target.rpartition(" (")[0] or target
