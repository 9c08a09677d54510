"""What a field of Recipe or Job is to people. Each is declared once, beside its type, range and default.

From there come --set and its proposals, `autoft plan --help-settings`, the comments of plan.toml, the checks of
presets, what an export has no key for, and docs/settings.md.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

Group = Literal[
    "Method", "Quantization", "Adapter", "Batch and length", "Memory", "Schedule", "Data", "Evaluation", "Checkpoints"
]
Change = Literal["memory", "time", "quality"]

BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
KINDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Setting:
    """As in `rank: Annotated[int, Gt(0), Setting("of the adapter's matrices", group="Adapter")] = 16`.

    help: a phrase, as plan.toml and --help-settings have it. more: sentences for the docs, with their sources.
    changes: what another value changes.
    elsewhere: names in other trainers (transformers, PEFT, TRL, bitsandbytes, axolotl, LLaMA-Factory, unsloth, QLoRA's
        own script), with spaces between them.
    follows: the setting that it says more of: who sets that one sets both.
    alone: whether a value is right or wrong by itself, whatever the others are.
    typed: whether --set takes it; what it does not take has an argument or an option.
    exported: whether every trainer that plans are exported to is told it, or autoft settles it in what it writes.
    optional: whether plan.toml has it only where it is not at its default.
    """

    help: str
    group: Group
    more: str = ""
    changes: tuple[Change, ...] = ()
    elsewhere: str = ""
    follows: str | None = None
    alone: bool = True
    typed: bool = True
    exported: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record with its Setting. hint: its type. default: dataclasses.MISSING where it must be given."""

    name: str
    hint: Any
    default: Any
    setting: Setting

    @property
    def kind(self) -> str:
        """Its type and range in words: "integer, above 0"."""
        return described(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; empty where it is no choice of words."""
        return tuple(value for part in _parts(self.hint) for value in typing.get_args(part) if isinstance(value, str))

    @property
    def is_switch(self) -> bool:
        return bool in _parts(self.hint)

    @property
    def is_list(self) -> bool:
        return any(typing.get_origin(part) is tuple for part in _parts(self.hint))


@functools.cache
def settings_of(record: type) -> dict[str, Field]:
    """The fields of Recipe or Job by name, in their order. Raises: TypeError for a field that declares no Setting."""
    hints = typing.get_type_hints(record, include_extras=True)
    fields = {}
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Setting)]
        if len(marks) != 1:
            raise TypeError(f"{record.__name__}.{field.name} declares {len(marks)} Settings, not one")
        fields[field.name] = Field(field.name, hint, field.default, marks[0])
    return fields


def described(hint: Any) -> str:
    """A type in the words of JSON: "integer, above 0 or null"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in KINDS:
        return KINDS[hint]
    if origin is typing.Annotated:
        return ", ".join([described(parts[0]), *_bounds(parts[1:])])
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


def default_of(default: Any) -> str:
    """A default as TOML would have it: true, 16, lora; null for None."""
    words = {None: "null", True: "true", False: "false", (): "[]"}
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    return str(default if is_number else words.get(default, default))


def _bounds(marks: tuple[Any, ...]) -> list[str]:
    return [f"{word} {getattr(mark, name):,}" for mark in marks for name, word in BOUNDS if hasattr(mark, name)]


def _parts(hint: Any) -> tuple[Any, ...]:
    """A type without its marks, as the types that it is a union of."""
    if typing.get_origin(hint) is typing.Annotated:
        return _parts(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(part for each in typing.get_args(hint) for part in _parts(each))
    return (hint,)
