"""`--help-settings`: every setting that --set takes, by what it is about."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from autoft import render
from autoft.settings import Field, default_of, settings_of


def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print them and end, as --help does."""
    if not wanted or ctx.resilient_parsing:
        return
    console = render.console()
    console.print("Settings of --set KEY=VALUE: what each is, its values and its default. docs/settings.md has more.")
    for group, fields in by_group().items():
        console.print(Text(f"\n{group}", style="bold"))
        console.print(_table(fields))
    ctx.exit()


def by_group() -> dict[str, list[Field]]:
    """The fields that --set takes, by their group, groups in the order in which they first come."""
    from autoft.trainer.job import Job
    from autoft.trainer.recipe import Recipe

    fields = [field for record in (Recipe, Job) for field in settings_of(record).values() if field.setting.typed]
    order = list(dict.fromkeys(field.setting.group for field in fields))
    ordered = sorted(fields, key=lambda field: order.index(field.setting.group))
    return {group: list(members) for group, members in groupby(ordered, key=lambda field: field.setting.group)}


def _table(fields: list[Field]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for field in fields:
        table.add_row(field.name, Text(f"{field.setting.help}\n{_values(field)}"))
    return table


def _values(field: Field) -> str:
    """integer, above 0 (default: 16; changes memory, quality)."""
    facts = [f"default: {default_of(field.default)}"] if field.default is not None else []
    if field.setting.changes:
        facts.append(f"changes {', '.join(field.setting.changes)}")
    kind = field.kind.replace('"', "").removesuffix(" or null")
    return f"{kind} ({'; '.join(facts)})" if facts else kind


OPTION: Any = click.option(
    "--help-settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show,
    help="List every setting of --set and exit.",
)
