"""Write docs/result.md: the fields of result.json and events.jsonl, as their dataclasses have them.

python docs/result_page.py            writes it
python docs/result_page.py --check    exits with 1 where it is not what the dataclasses say
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from autoft.schema import Record
from autoft.trainer import events
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import SCHEMA_VERSION, Evaluation, Measured, Predicted, RunResult, Sample

PAGE = Path(__file__).parent / "result.md"
HEAD = f"""# What a run writes of itself

Made by `python docs/result_page.py` (`make readme`) from the dataclasses in `trainer/`: do not edit.

`result.json` in the folder of a finished run is one object, a RunResult (schema_version {SCHEMA_VERSION}). `autoft run
--json` prints the same with `output`, the folder, in front. `report.html` beside it shows it to people.
`events.jsonl` tells what happened while it ran, a line an event.

Bytes are integers, times seconds unless their name says otherwise, SHA-256 in hexadecimal. No number is NaN or
infinite. A field with a default may be missing: it reads as that. None is null. In Python
`RunResult.from_dict(json.loads(text))` of `autoft.trainer.result` reads a result and checks every field.

## result.json
Of a RunResult, what its names alone don't tell: `base` is the hub id of the base model, or the name of its folder or
file. `job` too has names where the plan had absolute paths: those are in `local.json`, which stays on this machine.
`seconds` is by stage: load, rehearse, evaluate_before, train, evaluate_after, save. `tokens` are those that went
through the model, padding left out, `trained_tokens` those with a loss. `rows_left_out` were too long. `total_params`
counts a quantized weight once, whatever bits it has. `versions` is by package. `finished_at` is UTC, ISO 8601.
"""
EVENTS = """## events.jsonl

Each line is an object: `event`, which names one of the kinds below, `at`, the time in UTC as ISO 8601, and the fields
of that kind. `result.json` keeps the ones that mattered in `events`, some of them without `at`.
"""
NUMBERS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def page() -> str:
    """The whole text of the page."""
    kinds = [kind for kind in typing.get_args(events.Event) if kind is not events.Progress]
    result = [
        section(kind, kind.__name__) for kind in (RunResult, Predicted, Measured, Evaluation, Sample, Job, Recipe)
    ]
    told = [section(kind, kind.__name__.lower()) for kind in kinds]
    return "\n".join([HEAD, *result, EVENTS, *told])


def section(kind: type[Record], name: str) -> str:
    """A record: what its docstring says, and its fields."""
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = [
        f"| `{field.name}` | {described(hints[field.name])} | {default(field)} |"
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]
    about = inspect.getdoc(kind) if not (kind.__doc__ or "").startswith(f"{kind.__name__}(") else ""
    return "\n".join([f"### {name}\n\n{about}\n", "| Field | Type | Default |", "| --- | --- | --- |", *rows, ""])


def described(hint: Any) -> str:
    """A type, in the words of JSON."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in NUMBERS:
        return NUMBERS[hint]
    if origin is typing.Annotated:
        bounds = [
            f"{word} {getattr(mark, name):,}"
            for mark in parts[1:]
            for bound, name, word in BOUNDS
            if isinstance(mark, bound)
        ]
        return ", ".join([described(parts[0]), *bounds])
    if origin is Literal:
        return ", ".join(f'"{value}"' for value in parts)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(described(part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of: {described(parts[0])}"
    if origin is tuple:
        return f"[{', '.join(described(part) for part in parts)}]"
    if origin is dict:
        return "object" if parts[1] is Any else f"object of: {described(parts[1])}"
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def default(field: dataclasses.Field[Any]) -> str:
    """What a missing field reads as; empty where it must be there."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return ""
    plain = {None: "null", True: "true", False: "false", (): "[]"}
    is_number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
    return f"`{field.default if is_number else plain.get(field.default, field.default)}`"


def main() -> None:
    new = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == new:
        return
    if "--check" in sys.argv:
        sys.exit("docs/result.md is not what the dataclasses in trainer/ say: make readme")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
