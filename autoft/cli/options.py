"""Options that several commands share, and how a command prints its one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from autoft.errors import OptionError, OutputError, near

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def command(help_text: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command with -h, --json, --offline and --debug. `--json` arrives as `as_json`."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        function = OFFLINE(function)
        function = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(
            function
        )
        function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)
        return click.command(help=help_text, context_settings={"help_option_names": ["-h", "--help"]})(function)

    return wrap


def _go_offline() -> None:
    from autoft.trainer.environment import go_offline

    go_offline()


OFFLINE = click.option(
    "--offline",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, param, value: _go_offline() if value else None,
    help="Never use the network: models and datasets must be here already.",
)


class Choice(click.Choice[str]):
    """click's Choice, which refuses a wrong name in our words, with the names most like it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        value = {choice.casefold(): choice for choice in self.choices}.get(str(value).casefold(), value)
        if value not in self.choices:
            option = f"{param.opts[0]} " if param else ""
            raise OptionError(
                f"{option}{value}: not known.{near(str(value), self.choices)}",
                fix=f"one of: {', '.join(self.choices)}",
            )
        return str(value)


ACCEPT_CHANGES = click.option(
    "--accept-changes", is_flag=True, help="Use the run although its files are not what it wrote."
)
FORCE = click.option("--force", is_flag=True, help="Write over a file that is there already.")


def check_free(path: Path, option: str, *, force: bool) -> None:
    """Raises: OutputError when something is at `path` that must not be written over."""
    if path.exists() and not path.is_file():
        raise OutputError(f"{option} {path}: neither a file nor free", fix="give another name")
    if (path.exists() or path.is_symlink()) and not force:
        raise OutputError(f"{option} {path}: is there already", fix="give another name, or --force to write over it")


def print_json(data: dict[str, Any] | Sequence[Any]) -> None:
    """One JSON object on stdout."""
    text = json.dumps(data, indent=2, ensure_ascii=not takes_all_text())
    click.echo("".join(char if char == "\n" or char.isprintable() else f"\\u{ord(char):04x}" for char in text))


def takes_all_text() -> bool:
    """Whether stdout's encoding has every character; where not, JSON escapes them."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").casefold().startswith("utf")
