"""Which presets are known by name: what to train for a purpose, and why?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from autoft.errors import OptionError, near
from autoft.profiles.catalogue import load
from autoft.schema import Record

ADVICE = ("export",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting(Record):
    """One value of a preset, the reason for it, and the source of the reason."""

    value: bool | int | float | str | tuple[str, ...]
    reason: str
    source: str

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.source.strip():
            raise ValueError("reason and source must say something")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset(Record):
    """What a purpose asks for; what it leaves out is decided as without a preset.

    prefer: as --prefer. method, rank, alpha, target_modules, packing, seq_len: of the Recipe; seq_len is the length of
    packed rows, and of a plan without data: no row is left out for it. learning_rate, epochs, max_steps, eval_rows,
    max_new_tokens, metric: of the Job. export: what to make of the adapter afterwards; nothing acts on that, it is
    advice.
    """

    name: str
    summary: str
    prefer: Setting | None = None
    method: Setting | None = None
    rank: Setting | None = None
    alpha: Setting | None = None
    target_modules: Setting | None = None
    learning_rate: Setting | None = None
    epochs: Setting | None = None
    max_steps: Setting | None = None
    packing: Setting | None = None
    seq_len: Setting | None = None
    eval_rows: Setting | None = None
    max_new_tokens: Setting | None = None
    metric: Setting | None = None
    export: Setting | None = None

    @property
    def settings(self) -> dict[str, Setting]:
        """What the plan takes over, by its name there."""
        return {name: setting for name, setting in self._all().items() if name not in ADVICE}

    @property
    def advice(self) -> dict[str, Setting]:
        """What is only told."""
        return {name: setting for name, setting in self._all().items() if name in ADVICE}

    def _all(self) -> dict[str, Setting]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Setting)}


def preset_profiles() -> dict[str, Preset]:
    """All presets by name. Raises: FileFormatError for a catalogue file that is wrong."""
    return load("presets", Preset)


def find_preset(name: str) -> Preset:
    """The preset called `name`, in capitals or not. Raises: OptionError with the names most like it."""
    presets = preset_profiles()
    found = presets.get(name.strip().casefold())
    if found is None:
        raise OptionError(f"no preset {name!r}.{near(name, presets)}", fix=f"one of: {', '.join(presets)}")
    return found
