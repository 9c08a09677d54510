"""Write docs/result.md: the fields of result.json and events.jsonl, as their dataclasses have them.

python docs/result_page.py            writes it
python docs/result_page.py --check    exits with 1 where it is not what the dataclasses say
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from autoft.schema import Record
from autoft.settings import default_of, described, settings_of
from autoft.trainer import events
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe
from autoft.trainer.result import SCHEMA_VERSION, Evaluation, Measured, Predicted, RunResult, Sample, Start

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
SETTINGS = (Job, Recipe)  # records whose fields say what they are


def page() -> str:
    """The whole text of the page."""
    kinds = [kind for kind in typing.get_args(events.Event) if kind is not events.Progress]
    records = (RunResult, Predicted, Measured, Evaluation, Sample, Start, Job, Recipe)
    result = [section(kind, kind.__name__) for kind in records]
    told = [section(kind, kind.__name__.lower()) for kind in kinds]
    return "\n".join([HEAD, *result, EVENTS, *told])


def section(kind: type[Record], name: str) -> str:
    """A record: what its docstring says, and its fields, each with what it is where the field says so."""
    hints = typing.get_type_hints(kind, include_extras=True)
    help_of = {name: field.setting.help for name, field in settings_of(kind).items()} if kind in SETTINGS else {}
    rows = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        cells = [f"`{field.name}`", described(hints[field.name]), default(field)]
        if help_of:
            cells.append(help_of[field.name])
        rows.append(f"| {' | '.join(cells)} |")
    about = inspect.getdoc(kind) if not (kind.__doc__ or "").startswith(f"{kind.__name__}(") else ""
    columns = ("Field", "Type", "Default", "What it is") if help_of else ("Field", "Type", "Default")
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([f"### {name}\n\n{about}\n", *head, *rows, ""])


def default(field: dataclasses.Field[Any]) -> str:
    """What a missing field reads as; empty where it must be there."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return ""
    return f"`{default_of(field.default)}`"


def main() -> None:
    new = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == new:
        return
    if "--check" in sys.argv:
        sys.exit("docs/result.md is not what the dataclasses in trainer/ say: make readme")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
