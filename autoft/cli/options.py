"""Options that several commands share, and how a command prints its one JSON object."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from autoft.errors import OptionError, OutputError, near

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


# The sections of --help, in their order, and the options of each by their names in Python
SECTIONS: dict[str, tuple[str, ...]] = {
    "Data": ("data", "eval_data", "mapping", "tasks", "task_dir", "rows", "model", "thinking", "cases"),
    "Model and method": (
        "from_adapter", "base_run", "method", "preset", "prefer", "seq_len", "settings", "rank", "micro_batch",
        "checkpointing", "serve", "adapters", "weights", "density", "prompt", "system", "base", "temperature",
        "max_new_tokens", "tool",
    ),
    "Device": ("gpu", "vram_gib", "hosts", "link", "device"),
    "Limits": ("max_hours", "max_memory_gib", "max_energy_kwh", "min_rank", "served_by"),
    "Question": ("max_seq", "max_rank", "max_batch", "fit_all_gpus", "model_sweep"),
    "Output": ("output", "out", "trace", "export", "explain", "diff", "force", "as_json"),
    "Other": ("accept_changes", "no_cache", "debug"),
}  # fmt: skip
_SECTION_OF = {name: section for section, names in SECTIONS.items() for name in names}


class Command(click.Command):
    """Shows its options by section, and examples of its use."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {section: [] for section in ("Options", *SECTIONS)}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                section = "Other" if param.is_eager else _SECTION_OF.get(param.name or "", "Options")
                records[section].append(record)
        for section, lines in records.items():
            if lines:
                with formatter.section(section):
                    formatter.write_dl(lines)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class Actions(click.Group):
    """A command with actions; refuses one that is not there in our words. for_files: the action that takes a file."""

    def __init__(self, *args: Any, for_files: str, **settings: Any) -> None:
        super().__init__(*args, context_settings={"help_option_names": ["-h", "--help"]}, **settings)
        self.for_files = for_files

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            is_file = "." in args[0] or Path(args[0]).exists()
            fix = f"autoft {ctx.info_name} --help lists the actions"
            if is_file:
                fix = shlex.join(["autoft", str(ctx.info_name), self.for_files, *args])
            raise OptionError(f"{ctx.info_name} {args[0]}: not known.{near(args[0], self.commands)}", fix=fix)
        return super().resolve_command(ctx, args)


def command(help_text: str, examples: Sequence[str] = ()) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command with -h, --json, --offline and --debug. `--json` arrives as `as_json`."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        function = OFFLINE(function)
        function = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(
            function
        )
        function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")(function)
        make = click.command(
            cls=Command, help=help_text, examples=examples, context_settings={"help_option_names": ["-h", "--help"]}
        )
        return make(function)

    return wrap


def _go_offline() -> None:
    from autoft.trainer.runtime.environment import go_offline

    go_offline()


OFFLINE = click.option(
    "--offline",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, param, value: _go_offline() if value else None,
    help="Work offline: use only local or cached models and datasets.",
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
    "--accept-changes", is_flag=True, help="Open the run even if its files or its base have changed."
)
FORCE = click.option("--force", is_flag=True, help="Overwrite an existing file.")


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
