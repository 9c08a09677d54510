"""The plan as TOML that a person likes to read: what matters first, and a comment where a line has a reason."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from autoft.planner.search.candidates import describe
from autoft.schema import without_none
from autoft.settings import settings_of
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe, applies
from autoft.units import duration, size

if TYPE_CHECKING:
    from autoft.planner.plan.record import Plan

COLUMNS = 100
INSTEAD = 3  # alternatives told beside a line
# The sections behind the figures at the top. What is in none of these comes before the inputs.
ORDER = ("job", "estimate", "run_time_s", "run_energy_kwh", "workload")
LAST = ("reason_records", "inputs", "shape", "hardware", "alternatives")

SECTIONS = {
    "job": "What is trained, on what and for how long. Each line may be edited.",
    "job.recipe": "One training step. Each line may be edited; most change memory or time.",
    "estimate": "What a step takes, in bytes and seconds, rehearsed for the device named at the top.",
    "run_time_s": "All steps, evaluation not included.",
    "workload": "The data under the model's tokenizer and chat template, in tokens.",
    "reason_records": "The reasons at the top with what each is about, and its figures.",
    "inputs": "What the plan was made from: `autoft run` shows what has changed since.",
    "shape": "The model. `autoft run` refuses a model of another shape.",
    "hardware": "The machine that the plan was made on.",
    "alternatives": "What was not chosen, and why.",
}


def plan_toml(plan: Plan) -> str:
    """The whole plan; comments aside, `Plan.from_toml` gives it back."""
    import tomli_w

    data = without_none(plan.to_dict())
    for alternative in data.get("alternatives", ()):
        alternative["recipe"] = {key: value for key, value in alternative["recipe"].items() if _is_said(key, value)}
    literals = {name: value for name, value in data.items() if not _is_table(name, value)}
    between = [name for name in data if name not in (*literals, *ORDER, *LAST)]
    parts = [_header(plan), tomli_w.dumps(literals)]
    for name in (*ORDER, *between, *LAST):
        if name not in data or name in literals:
            continue
        if name == "job":
            recipe = data["job"].pop("recipe")
            recipe = {key: value for key, value in recipe.items() if _has_line(key, value, recipe)}
            meanings = {**_meanings(Job), "accumulation": _rows(plan)}
            parts.append(_table("job", data["job"], meanings, _reasons(plan)))
            parts.append(_table("job.recipe", recipe, _meanings(Recipe), _instead(plan), _reasons(plan)))
        else:
            text = tomli_w.dumps({name: data[name]})
            parts.append(_comment(SECTIONS.get(name, "")) + (_sized(text) if name == "estimate" else text))
    return "\n".join(parts)


def _has_line(key: str, value: Any, recipe: dict[str, Any]) -> bool:
    """Whether a setting means something in the recipe, and is to be said."""
    return applies(key, recipe["method"], recipe["adapter"]) and _is_said(key, value)


def _is_said(key: str, value: Any) -> bool:
    """Whether a setting of the recipe is there, or is one that is always said."""
    return bool(value) or not settings_of(Recipe)[key].setting.optional


def _header(plan: Plan) -> str:
    estimate, recipe = plan.estimate, plan.job.recipe
    memory = f"{size(estimate.device_bytes)} of {size(estimate.available_bytes)}"
    time = ""
    if plan.steps is not None and plan.run_time_s is not None:
        time = f"; {plan.steps} steps, {duration(plan.run_time_s.lower)} to {duration(plan.run_time_s.upper)}"
    return (
        _comment(f"{plan.job.model} on {plan.place}")
        + _comment(f"{describe(recipe)}, {recipe.seq_len} tokens: {memory}{time}")
        + "#\n"
        + _comment(
            "Train it with `autoft run` and the name of this file. Edit [job] as you like: run rehearses the step "
            "again, on the machine that it finds, and refuses what does not fit there. The other sections tell how "
            "the plan came about, and nothing acts on them."
        )
    )


def _table(path: str, values: dict[str, Any], meanings: dict[str, str], *reasons: dict[str, list[str]]) -> str:
    """One key a line, what it means behind it, and above it why it is so."""
    import tomli_w

    lines = [_comment(SECTIONS[path]) + f"[{path}]\n"]
    for key, value in values.items():
        lines += [_comment(reason) for found in reasons for reason in found.get(key, [])]
        line, meaning = tomli_w.dumps({key: value}).rstrip("\n"), meanings.get(key)
        lines.append(f"{line}  # {meaning}\n" if meaning else f"{line}\n")
    return "".join(lines)


def _sized(toml: str) -> str:
    """Bytes in words behind each figure that is one."""
    return re.sub(r"(?m)^(?!\w+_params)\w+ = (\d{4,})$", lambda line: f"{line[0]}  # {size(int(line[1]))}", toml)


def _rows(plan: Plan) -> str:
    job = plan.job
    gpus = f"{job.num_gpus} GPUs x " if job.num_gpus > 1 else ""
    return f"micro-batches in an optimizer step: {gpus}{job.recipe.micro_batch} x {job.accumulation} rows"


def _instead(plan: Plan) -> dict[str, list[str]]:
    """Of the alternatives that turn one knob, what each would take, by the knob's line."""
    chosen, fields = plan.job.recipe.to_dict(), settings_of(Recipe)
    lines_at: dict[str, list[str]] = {}
    for alternative in (a for a in plan.alternatives if a.num_gpus == plan.job.num_gpus):
        other = alternative.recipe.to_dict()
        changed = [key for key, value in other.items() if value != chosen[key]]
        knobs = {fields[key].setting.follows or key for key in changed}
        if len(knobs) == 1:
            line = f"not {describe(alternative.recipe)}: {alternative.reason}"
            lines_at.setdefault(knobs.pop(), []).append(line)
    return {knob: lines[:INSTEAD] for knob, lines in lines_at.items()}


def _meanings(record: type) -> dict[str, str]:
    return {name: field.setting.help for name, field in settings_of(record).items()}


def _reasons(plan: Plan) -> dict[str, list[str]]:
    """The plan's reasons by the key that they explain."""
    by_key: dict[str, list[str]] = {}
    for reason in plan.reason_records:
        by_key.setdefault(reason.key, []).append(reason.text)
    return by_key


def _comment(text: str) -> str:
    """Lines that begin with "# ", of any text: what no comment may hold is left out."""
    shown = "".join(char for char in " ".join(text.split()) if char.isprintable())
    lines = textwrap.wrap(shown, COLUMNS - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _is_table(name: str, value: Any) -> bool:
    """Whether it stands under a heading of its own: what is short enough may stand in a line among others."""
    import tomli_w

    return isinstance(value, dict) or tomli_w.dumps({name: value}).startswith("[")
