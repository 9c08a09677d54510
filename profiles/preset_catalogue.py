"""Which presets are known by name: what to train for a purpose, and why?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from autoft.errors import FileFormatError, OptionError, near
from autoft.profiles.catalogue import load
from autoft.schema import Record

ADVICE = ("export",)


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetValue(Record):
    """One value of a preset, the reason for it, and the source of the reason."""

    value: bool | int | float | str | tuple[str, ...]
    reason: str
    source: str

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.source.strip():
            raise ValueError("reason and source must say something")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset(Record):
    """What a purpose asks for; what it leaves out is decided as without a preset. In TOML each value is a table.

    values: by name: fields of Recipe and Job, which planner/search/preset.py checks; seq_len is the length of packed
    rows, and of a plan without data: no row is left out for it. prefer: as --prefer. export: what to make of the
    adapter afterwards, as `autoft export --to` has it; it is told as advice.
    """

    name: str
    summary: str
    values: dict[str, PresetValue]

    @property
    def settings(self) -> dict[str, PresetValue]:
        """What the plan takes over, by its name there."""
        return {name: value for name, value in self.values.items() if name not in ADVICE}

    @property
    def advice(self) -> dict[str, PresetValue]:
        """What is only told."""
        return {name: value for name, value in self.values.items() if name in ADVICE}

    def to_dict(self) -> dict[str, Any]:
        values = {name: value.to_dict() for name, value in self.values.items()}
        return {"name": self.name, "summary": self.summary, **values}

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, where: str = "") -> Self:
        prefix = f"{where}: " if where else ""
        texts, values = {}, {}
        for name, value in data.items():
            if name in ("name", "summary"):
                texts[name] = value
            elif isinstance(value, dict):
                values[name] = PresetValue.from_dict(value, where=f"{prefix}[{name}]")
            else:
                fix = f"[{name}] with value, reason and source"
                raise FileFormatError(f"{prefix}{name} = {value!r}: not a table", fix=fix)
        for name in ("name", "summary"):
            if not isinstance(texts.get(name), str):
                raise FileFormatError(f"{prefix}{name}: no text", fix=f'{name} = "..."')
        return cls(**texts, values=values)


def preset_profiles() -> dict[str, Preset]:
    """All presets by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return load("presets", Preset)


def find_preset(name: str) -> Preset:
    """The preset called `name`, in capitals or not. Raises: OptionError with the names most like it."""
    presets = preset_profiles()
    preset = presets.get(name.strip().casefold())
    if preset is None:
        raise OptionError(f"no preset {name!r}.{near(name, presets)}", fix=f"one of: {', '.join(presets)}")
    return preset
