"""Plans kept: `autoft plan` asked again answers without importing torch.

Beside what an estimate depends on, a plan depends on the data, the tokenizer, the preset and the limits, and on how
much memory is free: within SAME_MEMORY it is taken to be as much as then, and the plan must still fit.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from dataclasses import replace
from typing import Any

from autoft.errors import FileFormatError
from autoft.planner.estimator.target import Target, target_of_request
from autoft.planner.plan.cached_estimates import facts_of
from autoft.planner.plan.disk_cache import Shelf, digest
from autoft.planner.plan.provenance import data_digest
from autoft.planner.plan.record import Plan
from autoft.planner.request import Request
from autoft.planner.search.set_option import parse_settings
from autoft.profiles.hardware import Hardware
from autoft.profiles.preset_catalogue import find_preset
from autoft.trainer.sources.resolve import config_source, resolve

SHELF = Shelf("plans")
SAME_MEMORY = 1.05  # times more or less: a little comes and goes
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab*", "merges.txt", "*.model")


@dataclasses.dataclass(frozen=True, slots=True)
class PlanQuestion:
    """key: hex digest of all that the plan depends on. target: the device as it is now."""

    key: str
    target: Target


def ask(request: Request, hardware: Hardware) -> PlanQuestion | None:
    """None where not all can be told that the plan depends on. Raises: InputError, as planning does."""
    # what is wrong with them is told before a model is looked for
    recipe_pins, job_pins = parse_settings(request.settings)
    target = target_of_request(request, hardware, hosts=job_pins.get("hosts", 1), link=job_pins.get("link"))
    ref = resolve(request.model)
    config = config_source(ref)
    paths = (request.data, request.eval_data, request.from_adapter)
    data = [data_digest(path) for path in paths]
    unknown = [path for path, digest_ in zip(paths, data, strict=True) if path and not digest_]
    tokenizes = request.data is not None or "new_tokens" in recipe_pins
    if config is None or unknown or (tokenizes and ref.kind in ("hub", "catalogue")):
        return None  # the hub's tokenizer may be another one next time
    # the starter's is of one version, and that of a .gguf file in the header that `config` is
    files = sorted({file for name in TOKENIZER for file in ref.local.glob(name)}) if ref.kind == "folder" else []
    facts = {
        "request": dataclasses.asdict(request),
        "data": data,
        "preset": find_preset(request.preset).to_dict() if request.preset else None,
        "tokenizer": [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files],
        "hardware": [hardware.notes, hardware.driver_version, hardware.no_gpu_reason],
        **facts_of(request, ref, config, target, hardware),
    }
    return PlanQuestion(digest(facts), target)


def recall(question: PlanQuestion) -> Plan | None:
    """The kept plan, with what can be used as of now; None when there is none that still fits."""
    answer = SHELF.read(question.key)
    if answer is None:
        return None
    try:
        plan = Plan.from_dict(answer["plan"])
    except (FileFormatError, KeyError, TypeError):
        return None
    target = question.target.using(plan.job.num_gpus)
    available, then = target.available_bytes, plan.estimate.available_bytes
    free = [gpu.free_bytes for gpu in question.target.gpus]
    pairs = [(available, then), *zip(free, answer.get("free_bytes", []), strict=False)]
    if plan.estimate.device_bytes > available or not all(_like(now, before) for now, before in pairs):
        return None
    notes = plan.notes
    if question.target.measures_now:
        notes = (
            *notes,
            f"planned earlier today, {answer['at']} UTC, at the speed of then; --no-cache plans again",
        )
    return replace(plan, estimate=replace(plan.estimate, available_bytes=available), notes=notes)


def keep(question: PlanQuestion, plan: Plan) -> None:
    """Keep a plan where AUTOFT_HOME can be written to."""
    free = [gpu.free_bytes for gpu in question.target.gpus]
    answer: dict[str, Any] = {
        "plan": plan.to_dict(),
        "free_bytes": free,
        "at": datetime.datetime.now(datetime.UTC).strftime("%H:%M"),
    }
    SHELF.keep(question.key, answer)


def _like(now: int, then: int) -> bool:
    return then > 0 and 1 / SAME_MEMORY <= now / then <= SAME_MEMORY
